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

from pipeline.errors import Locked, PipelineError
from pipeline.loading import load_recipe
from pipeline.locks import FileLock, is_locked
from pipeline.planner import make_plan
from pipeline.runs import kept_recipes
from pipeline.store import Store

LOCK = "stage.lock"


@dataclass(frozen=True)
class Leftover:
    """Something that can be deleted.

    Attributes:
        path: an entry of the store, or what an unfinished attempt left in one.
        size: bytes of all files below.
        kind: ``result``: no run needs it; ``work``: a run would go on from it, or begin anew without it.
    """

    path: Path
    size: int
    kind: Literal["result", "work"]


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
            found += [Leftover(path, _size(path), "work") for path in _scratch(entry) if work]
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


def _needed(runs: Path) -> set[Path]:
    """The entries that runs lead to or ask for, as real paths."""
    needed = {link.resolve() for link in runs.glob("*/stages/**/*") if link.is_symlink()}
    store = Store((runs / "store").resolve())
    for run, recipe in kept_recipes(runs).items():
        try:
            plan = make_plan(load_recipe(recipe), runs)
        except PipelineError as error:
            raise PipelineError(
                f"what run {run!r} needs cannot be told, so nothing is deleted:\n{error}\n"
                f"Mend {recipe}, or delete {recipe.parent} if the run is of no use any more."
            ) from None
        needed |= {store.entry(stage.uses, stage.key).path for stage in plan.stages}
    return needed


def _scratch(entry: Path) -> list[Path]:
    found = [path for path in (entry / "work", *entry.glob("out.partial-*")) if path.is_dir()]
    return [path for path in found if any(path.iterdir())]


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
