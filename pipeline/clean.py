"""Finding what of the store nothing needs any more, and deleting it.

A run needs the results that its links lead to, and those that its kept recipe asks for, made or begun. Nothing else is
deleted, and nothing that some process is at work on.
"""

from __future__ import annotations

import shutil
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import result_links
from pipeline.errors import Locked, PipelineError
from pipeline.executing.locks import FileLock, is_locked
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.runs import kept_recipes
from pipeline.store import Attempt, Entry, Store, StoreError

LOCK = "stage.lock"


@dataclass(frozen=True)
class Unfinished:
    """What attempts that came to no result have done.

    Attributes:
        stages: whose it is, as ``run/stage``.
        point: from where the next attempt would go on, in words; None if it would begin anew anyway.
        seconds: how long these attempts took together.
    """

    stages: tuple[str, ...]
    point: str | None
    seconds: float


@dataclass(frozen=True)
class Leftover:
    """Something that can be deleted.

    Attributes:
        path: an entry of the store, or what an unfinished attempt left in one.
        size: bytes of all files below.
        kind: ``result``: no run needs it; ``work``: a run would go on from it, or begin anew without it.
        lost: what would have to be done again; None of results.
    """

    path: Path
    size: int
    kind: Literal["result", "work"]
    lost: Unfinished | None = None


def leftovers(runs: Path, *, work: bool, keep_last: int) -> list[Leftover]:
    """What can be deleted below ``runs/store``, in path order.

    Args:
        runs: the directory of all runs.
        work: also what unfinished attempts left of results that runs need.
        keep_last: spare so many of the newest results of each stage kind that no run needs.

    Raises:
        PipelineError: what some run needs cannot be told.
    """
    needed = _needed(runs)
    unneeded: dict[str, list[Path]] = defaultdict(list)
    found: list[Leftover] = []
    for entry in _entries(runs):
        if is_locked(entry / LOCK):
            continue
        if entry in needed:
            lost = _unfinished(entry, needed[entry]) if work else None
            found += [Leftover(path, _size(path), "work", lost) for path in _scratch(entry) if work]
        else:
            unneeded[entry.parent.name].append(entry)
    for entries in unneeded.values():
        entries.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
        found += [Leftover(entry, _size(entry), "result") for entry in entries[keep_last:]]
    return sorted(found, key=lambda leftover: leftover.path)


def delete(found: Iterable[Leftover]) -> int:
    """Delete what ``leftovers`` found and give back how many bytes that were.

    What somebody began to work on meanwhile is left alone.
    """
    freed = 0
    for leftover in found:
        entry = leftover.path if leftover.kind == "result" else leftover.path.parent
        try:
            with FileLock(entry / LOCK).acquire():
                _remove(leftover.path)
        except Locked:
            continue
        freed += leftover.size
    return freed


def _remove(path: Path) -> None:
    """Out of sight first, so that a deletion that is cut short leaves no half of a result under its name."""
    hidden = path.with_name(f".deleted-{uuid.uuid4().hex}")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _entries(runs: Path) -> Iterator[Path]:
    """Every entry of the store, as a real path."""
    root = (runs / "store").resolve()
    for path in sorted(root.glob("*/*")):
        if path.is_dir() and not path.is_symlink() and path.resolve().is_relative_to(root):
            yield path


def _unfinished(entry_path: Path, stages: Iterable[str]) -> Unfinished:
    try:
        done = Entry(entry_path, "").recorded()
    except StoreError:
        done = None
    entry = Entry(entry_path, done.key if done else "")
    since = [attempt for attempt in entry.attempts() if done is None or attempt.number > done.attempt]
    return Unfinished(tuple(stages), entry.resume_point(), sum(_seconds(attempt) for attempt in since))


def _seconds(attempt: Attempt) -> float:
    """How long an attempt took; of one that was killed, until it last wrote anything."""
    started = attempt.status.get("started")
    if started is None:
        return 0.0
    written = [path.stat().st_mtime for path in attempt.path.iterdir() if path.is_file()]
    return max(0.0, attempt.status.get("ended", max(written)) - started)


def _needed(runs: Path) -> dict[Path, list[str]]:
    """The entries that runs lead to or ask for, as real paths, with the ``run/stage`` that do."""
    needed: dict[Path, list[str]] = defaultdict(list)
    for label, place in result_links.every(runs):
        needed[place].append(label)
    store = Store((runs / "store").resolve())
    for run, recipe in kept_recipes(runs).items():
        try:
            plan = make_plan(load_recipe(recipe), runs)
        except PipelineError as error:
            raise PipelineError(
                f"what run {run!r} needs cannot be told, so nothing is deleted:\n{error}\n"
                f"Mend {recipe}, or delete {recipe.parent} if the run is of no use any more."
            ) from None
        for stage in plan.stages:
            label, labels = f"{run}/{stage.name}", needed[store.entry(stage.uses, stage.key).path]
            if label not in labels:
                labels.append(label)
    return needed


def _scratch(entry: Path) -> list[Path]:
    found = [path for path in (entry / "work", *entry.glob("out.partial-*")) if path.is_dir()]
    return [path for path in found if any(path.iterdir())]


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
