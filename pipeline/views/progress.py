"""How far the stages of a run are, told from what they write: the run's events, their logs, their training curves.

Nothing is asked of the runner or of a stage, so a view of a run can neither hold it up nor end it.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.estimates import Estimate
from pipeline.plan import Action, Plan
from pipeline.store import Store
from pipeline.views.display import clock
from pipeline.views.tail import Tail
from stages.worker import PROGRESS_PREFIX

State = Literal["waiting", "running", "finished", "cached", "failed", "interrupted", "retrying", "left"]

LOSS, SPEED = "loss", "student_tokens_per_second"
"""What a training stage calls these in ``metrics.jsonl``."""

_COUNTS = re.compile(r"(?<![\d.,])(\d[\d,]*)\s*(?:/|\bof\b)\s*(?:[a-z' ]+ )?(\d[\d,]*)(?![\d.])")
_PERCENT = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s?%")
_ETA = re.compile(r"\bETA (\S+)")
_REMARK = re.compile(r"(?:^|\s)(?:warning|note):", re.IGNORECASE)
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(line: str) -> str:
    """``line`` as a terminal may show it: of a bar that redraws itself the last state, and nothing that steers."""
    return _CONTROL.sub("", line.rstrip("\r").rsplit("\r", 1)[-1])


def is_remark(line: str) -> bool:
    """Whether a progress line is a warning or a note, which a person should see whatever else is left out."""
    return _REMARK.search(line) is not None


def share_of(line: str) -> float | None:
    """The share of the work that a progress line says is done, from 0 to 1; None if it does not."""
    if match := _COUNTS.search(line):
        done, total = (int(number.replace(",", "")) for number in match.groups())
        return done / total if 0 <= done <= total and total else None
    if match := _PERCENT.search(line):
        percent = float(match[1])
        return percent / 100 if percent <= 100 else None
    return None


@dataclass
class Pace:
    """Seconds that remain, by how the share that progress lines give has grown.

    A line such as ``27 of 400 tokens were found`` gives a share too: only what grows from one line to the next of the
    same wording is believed.
    """

    share: float | None = None
    _wording: str = ""
    _first: tuple[float, float] = (0.0, 0.0)
    _last: float | None = None

    def update(self, line: str, now: float) -> None:
        """Take notice of a progress line that was written at ``now`` (seconds)."""
        share = share_of(line)
        if share is None:
            return
        wording = re.sub(r"\d[\d.,]*", "#", line.split("  ")[0])
        if wording != self._wording or self._last is None or share < self._last:
            self._wording, self._first, self.share = wording, (now, share), None
        elif share > self._first[1]:
            self.share = share
        self._last = share

    def remaining(self, now: float) -> float | None:
        """Seconds from ``now``; None as long as nothing has grown, and when all is done."""
        if self.share is None or self.share == 1:
            return None
        began, at_first = self._first
        return max(0.0, (now - began) * (1 - self.share) / (self.share - at_first))


@dataclass
class StageProgress:
    """What is known of one stage of a run.

    Attributes:
        name: of the stage.
        state: as the run's events say; ``left`` was not selected.
        expected: seconds, by earlier runs; None where nothing is known.
        started: when its attempt began, in seconds of the follower's clock.
        seconds: how long the attempt took, once it has ended.
        line: its newest progress line.
        loss, speed: of its newest point of the training curve (nats; student tokens per second).
    """

    name: str
    state: State
    expected: float | None = None
    started: float = 0.0
    seconds: float | None = None
    line: str = ""
    loss: float | None = None
    speed: float | None = None
    pace: Pace = field(default_factory=Pace)

    @property
    def is_done(self) -> bool:
        """Whether its result is there."""
        return self.state in ("finished", "cached")

    @property
    def share(self) -> float | None:
        """Of the work that is done, 0 to 1, where the stage's own lines tell."""
        return self.pace.share

    def eta(self, now: float) -> str | None:
        """How long it may still take, for a person: by itself, by its pace, or by earlier runs."""
        if match := _ETA.search(self.line):
            return match[1]
        if self.share == 1:
            return None
        remaining = self.pace.remaining(now)
        if remaining is None and self.expected is not None:
            remaining = self.expected - (now - self.started)
        return None if remaining is None or remaining < 0 else clock(remaining)


@dataclass
class _Attempt:
    log: Tail
    metrics: Tail


class Follower:
    """Reads what a run and its stages have written since the last look."""

    def __init__(self, plan: Plan, expected: Mapping[str, Estimate], now: Callable[[], float] = time.monotonic) -> None:
        self.stages = {
            stage.name: StageProgress(
                stage.name,
                "left" if stage.action is Action.LEAVE else "waiting",
                expected[stage.name].seconds if stage.name in expected else None,
            )
            for stage in plan.stages
        }
        self.now = now
        self._plan = plan
        events = plan.run_directory / "events.jsonl"
        self._events = Tail(events, events.stat().st_size if events.exists() else 0)
        self._attempts: dict[str, _Attempt] = {}

    @property
    def running(self) -> list[StageProgress]:
        """The stages that are at work."""
        return [stage for stage in self.stages.values() if stage.state == "running"]

    def waits_for(self, name: str) -> str:
        """What a waiting stage still needs, in words; empty if it may begin."""
        needed = [other for other in self._plan.stage(name).upstream if not self.stages[other].is_done]
        return f"waits for {', '.join(needed)}" if needed else ""

    def poll(self) -> list[tuple[str, str]]:
        """Take in what is new; returns the lines that libraries wrote to the logs: stage and line."""
        for event in _records(self._events):
            self._take_event(event)
        chatter: list[tuple[str, str]] = []
        for name, attempt in list(self._attempts.items()):
            stage = self.stages[name]
            for line in attempt.log.lines():
                if line.startswith(PROGRESS_PREFIX):
                    stage.line = printable(line.removeprefix(PROGRESS_PREFIX))
                    stage.pace.update(stage.line, self.now())
                elif line.strip():
                    chatter.append((name, printable(line)))
            for record in _records(attempt.metrics):
                stage.loss = _number(record.get(LOSS), stage.loss)
                stage.speed = _number(record.get(SPEED), stage.speed)
            if stage.state != "running":
                del self._attempts[name]
        return chatter

    def _take_event(self, event: Mapping[str, Any]) -> None:
        stage = self.stages.get(event.get("stage", ""))
        if stage is None:
            return
        kind = event.get("event")
        if kind == "started":
            # What an earlier attempt showed is not how far this one is.
            self.stages[stage.name] = StageProgress(stage.name, "running", stage.expected, self.now())
            self._attempts[stage.name] = self._attempt(stage.name, int(event["attempt"]))
        elif kind in ("finished", "failed", "interrupted", "cached", "retrying"):
            stage.state, stage.seconds = kind, event.get("seconds")

    def _attempt(self, name: str, number: int) -> _Attempt:
        planned = self._plan.stage(name)
        directory = Store(self._plan.runs / "store").entry(planned.uses, planned.key).path / "attempts" / str(number)
        return _Attempt(Tail(directory / "log.txt"), Tail(directory / "metrics.jsonl"))


def _records(tail: Tail) -> Iterator[Mapping[str, Any]]:
    """The new JSON objects of a file of lines; a line that a kill cut short is passed over."""
    for line in tail.lines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def _number(value: Any, before: float | None) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else before
