"""The logs of stages: finding them, and following one while its stage runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.nearest import unknown_name
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.runs import kept_recipe
from pipeline.store import Attempt, Entry, Store
from pipeline.views.tail import Tail
from stages.ranks import log_path

_POLL_SECONDS = 0.5


def show_log(run: str, stage: str, runs: Path, number: int | None, rank: int, *, follow: bool) -> None:
    """Print the log of a stage's attempt; with ``follow``, until the stage ends.

    Args:
        number: of the attempt; None for the newest.

    Raises:
        RecipeError: there is no such run, stage, attempt or rank.
    """
    entry = _entry(run, stage, runs)
    attempt = _attempt(entry, stage, number)
    path = log_path(attempt.path, rank)
    if not path.exists():
        raise RecipeError(f"attempt {attempt.number} of stage {stage!r} has no log of rank {rank} at {path}")
    log = Tail(path)
    _print(log)
    while follow and entry.is_locked():
        time.sleep(_POLL_SECONDS)
        _print(log)
    rest = path.read_bytes()[log.offset :]  # a last line without an end, as of a process that was killed
    sys.stdout.write(rest.decode("utf-8", errors="replace"))


def _entry(run: str, stage: str, runs: Path) -> Entry:
    plan = make_plan(load_recipe(kept_recipe(run, runs)), runs)
    names = [planned.name for planned in plan.stages]
    if stage not in names:
        raise RecipeError(f"run {run!r} has no stage called {stage!r}{unknown_name(stage, names)}")
    planned = plan.stage(stage)
    return Store(runs / "store").entry(planned.uses, planned.key)


def _attempt(entry: Entry, stage: str, number: int | None) -> Attempt:
    attempts = {attempt.number: attempt for attempt in entry.attempts()}
    if not attempts:
        raise RecipeError(f"stage {stage!r} has not been run yet")
    if number is not None and number not in attempts:
        raise RecipeError(f"stage {stage!r} has no attempt {number}; there are {', '.join(map(str, attempts))}")
    return attempts[max(attempts) if number is None else number]


def _print(log: Tail) -> None:
    for line in log.lines():
        print(line, flush=True)
