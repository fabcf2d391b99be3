"""What a run keeps of its attempts, read back: which were its own, which went on from each other, and their curves.

The store is shared by all runs, so an entry may hold attempts of several; a run's ``events.jsonl`` tells them apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.store import Attempt, Done, Entry
from pipeline.views.tail import Tail

Ending = Literal["finished", "failed", "interrupted"]
Moment = Literal["started", "ended"]

_SAME_ATTEMPT_SECONDS = 60
"""An attempt is recorded in the run's events at once; a clock that was set meanwhile may have moved a little."""


@dataclass(frozen=True)
class Life:
    """Attempts of one run at one stage that went on from each other.

    Attributes:
        attempts: oldest first; all but the last did not finish.
        done: the result, if it is theirs.
    """

    attempts: tuple[Attempt, ...]
    done: Done | None

    @property
    def last(self) -> Attempt:
        """The newest attempt."""
        return self.attempts[-1]

    @property
    def state(self) -> Ending:
        """How the last attempt ended; one whose runner was killed was interrupted, unless it was published before."""
        state = "finished" if self.done is not None else self.last.state
        return state if state in ("finished", "failed") else "interrupted"


@dataclass(frozen=True)
class RunEvents:
    """What a run recorded about its stages. Where that is lost, results tell which run made them."""

    events: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> RunEvents:
        """The events of an ``events.jsonl``; none if there is no such file."""
        return cls(tuple(_objects(Tail(path).lines())))

    def is_ours(self, stage: str, attempt: Attempt, done: Done | None, run: str) -> bool:
        """Whether an attempt at ``stage`` was made by ``run``, whose events these are."""
        if not self.events:
            return done is not None and done.run == run and attempt.number <= done.attempt
        return any(
            (event.get("event"), event.get("stage"), event.get("attempt")) == ("started", stage, attempt.number)
            and abs(event.get("time", 0.0) - started(attempt)) < _SAME_ATTEMPT_SECONDS
            for event in self.events
        )

    def has_used(self, stage: str, done: Done) -> bool:
        """Whether the run came to a result of ``stage`` that was there already."""
        return not self.events or any(
            event.get("stage") == stage and event.get("result_id") == done.result_id for event in self.events
        )


def lives(stage: str, entry: Entry, events: RunEvents, run: str) -> list[Life]:
    """The attempts of ``run`` at ``stage``, cut after each that finished."""
    done = entry.done()
    found: list[list[Attempt]] = [[]]
    for attempt in entry.attempts():
        if events.is_ours(stage, attempt, done, run):
            found[-1].append(attempt)
            if attempt.state == "finished" or (done is not None and attempt.number == done.attempt):
                found.append([])
    return [
        Life(tuple(attempts), done if done and done.attempt in {attempt.number for attempt in attempts} else None)
        for attempts in found
        if attempts
    ]


def curve_records(attempt: Attempt) -> tuple[list[Mapping[str, Any]], int]:
    """The whole lines of its ``metrics.jsonl``, and how many others a crash left."""
    lines = Tail(attempt.path / "metrics.jsonl").lines()
    records = [record for record in _objects(lines) if {"step", "time"} <= record.keys()]
    return records, len(lines) - len(records)


def started(attempt: Attempt) -> float:
    """When, in seconds since the epoch; 0 if that is not recorded."""
    return attempt.status.get("started", 0.0)


def slurm_job(attempt: Attempt) -> str | None:
    """The SLURM job that it was part of."""
    try:
        recorded = json.loads((attempt.path / "env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return recorded.get("inherited", {}).get("SLURM_JOB_ID")


def _objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines."""
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
