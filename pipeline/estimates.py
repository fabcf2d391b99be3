"""How long a stage will take and how much it will write, judged by earlier results of its kind (R12 and R18)."""

from __future__ import annotations

import heapq
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.plan import Plan, PlannedStage
from pipeline.reading.problems import leaves
from pipeline.store import Done, Store

MOST_READ = 50
"""So many of the newest results of a kind are looked at."""

WORK = ("steps", "max_documents")
"""Options that a stage's time grows with in proportion."""


class NoRoom(PipelineError):
    """The disk cannot hold what the run will write."""


@dataclass(frozen=True)
class Estimate:
    """What to expect of one stage: seconds of wall clock, and bytes of its result."""

    seconds: float
    bytes: int


def estimates(plan: Plan) -> dict[str, Estimate]:
    """Stage name -> what to expect, for the stages that will run and whose kind has been run before.

    The earlier result with the most options in common counts, its time in proportion to the options of ``WORK``. Stages
    with one key are made once, so only the first of them counts.
    """
    store = Store(plan.runs / "store")
    found = {}
    for stage in {stage.key: stage for stage in reversed(plan.pending)}.values():
        earlier = max(_results(store, stage.uses), key=lambda done: _likeness(stage, done), default=None)
        if earlier is not None:
            seconds = max(0.0, earlier.seconds)  # results of before durations were told by a clock that nobody sets
            found[stage.name] = Estimate(seconds * _more_work(stage, earlier), earlier.size)
    return found


def check_room(plan: Plan, expected: Mapping[str, Estimate]) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        NoRoom: the results that are to be expected are larger than what is free.
    """
    needed = sum(estimate.bytes for estimate in expected.values())
    there = next(path for path in (plan.runs.absolute(), *plan.runs.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        largest = max(expected, key=lambda name: expected[name].bytes)
        raise NoRoom(
            f"{plan.runs} has {free:,} bytes free; by earlier results of their kinds, the stages to run will write "
            f"about {needed:,}, {largest} alone {expected[largest].bytes:,}.\n"
            "Make room, or keep results elsewhere (--runs DIR)."
        )


def _results(store: Store, kind: str) -> Iterator[Done]:
    markers = (store.root / kind).glob("*/DONE.json")
    for marker in heapq.nlargest(MOST_READ, markers, key=_modified):
        try:
            yield Done.from_json(json.loads(marker.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is no result; the plan says so where it is needed


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _likeness(stage: PlannedStage, done: Done) -> tuple[int, float]:
    before, now = _options(done.ingredients), _options(stage.ingredients)
    return sum(before.get(place) == value for place, value in now.items()), done.finished


def _options(ingredients: Mapping[str, Any]) -> dict[Any, Any]:
    return dict(leaves(ingredients.get("params", {}))) | dict(leaves(ingredients.get("inputs", {})))


def _more_work(stage: PlannedStage, done: Done) -> float:
    before, now = done.ingredients.get("params", {}), stage.ingredients.get("params", {})
    shares = (
        now[name] / before[name]
        for name in WORK
        if isinstance(now.get(name), int | float) and isinstance(before.get(name), int | float) and before[name]
    )
    return next(shares, 1.0)
