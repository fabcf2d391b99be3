"""Reading every byte of what was published: the check that a plan is too quick for (runner rules R2 and R7).

A plan looks whether all files of a result are there with their sizes. A disk, a copy or a hand may change bytes and
leave the size; the manifest holds a digest of every file, so that can be seen. What is found is noted beside the
result, and from then on it counts as damaged for every command: the next run makes it anew.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import durable
from pipeline.errors import Locked
from pipeline.executing.locks import FileLock
from pipeline.publish import result_id
from pipeline.runs import kept_recipes
from pipeline.store import Done, Entry, FileRecord, StoreError
from pipeline.views.overview import places_of


@dataclass(frozen=True)
class FileProblem:
    """What is wrong with one file: its path, and the problem in words."""

    path: Path
    problem: str


@dataclass(frozen=True)
class Verdict:
    """What became of one result.

    Attributes:
        path: its entry in the store.
        stages: run -> the stages of it whose result this is.
        state: ``whole``; ``damaged``; ``missing`` if it was not made yet.
        size: bytes that were read.
        problems: the damaged files.
        note: what could not be written down about the damage, in words; None if all could.
    """

    path: Path
    stages: Mapping[str, tuple[str, ...]]
    state: Literal["whole", "damaged", "missing"]
    size: int
    problems: tuple[FileProblem, ...] = ()
    note: str | None = None


def verify(runs: Path, names: list[str]) -> Iterator[Verdict]:
    """Read every file of the results of some runs, each result once, and note which are damaged.

    Args:
        runs: the directory of all runs.
        names: of the runs; each is known.

    Raises:
        PipelineError: what a run consists of cannot be told.
    """
    recipes = kept_recipes(runs)
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for name in names:
        for stage, place in places_of(recipes[name], runs).items():
            stages = found.setdefault(place, {})
            stages[name] = (*stages.get(name, ()), stage)
    for place, stages in found.items():
        yield _verdict(Entry(runs / "store" / place, ""), stages)


def problems(entry: Entry, done: Done) -> list[FileProblem]:
    """The files of a result that are not what was published, in the order of its manifest."""
    if result_id(done.manifest) != done.result_id:
        return [FileProblem(entry.done_path, "its list of files is not the one that was written")]
    found = []
    for file in done.manifest:
        path = entry.output_directory(done.attempt) / file.path
        if problem := _problem(path, file):
            found.append(FileProblem(path, problem))
    return found


def _problem(path: Path, file: FileRecord) -> str | None:
    try:
        size = path.stat().st_size
        if size != file.size:
            return f"it has {size:,} bytes instead of {file.size:,}"
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if digest != file.sha256:
        return f"its content changed (sha256 {digest[:12]} instead of {file.sha256[:12]})"
    return None


def _verdict(entry: Entry, stages: Mapping[str, tuple[str, ...]]) -> Verdict:
    try:
        done = entry.recorded()
    except StoreError as error:
        return Verdict(entry.path, stages, "damaged", 0, (FileProblem(entry.done_path, str(error)),))
    if done is None:
        return Verdict(entry.path, stages, "missing", 0)
    found = tuple(problems(entry, done))
    state = "damaged" if found else "whole"
    return Verdict(entry.path, stages, state, done.size, found, _noted(entry, done.attempt, found))


def _noted(entry: Entry, attempt: int, found: tuple[FileProblem, ...]) -> str | None:
    """Write down what was found, or forget what no longer holds; returns why that was not possible."""
    if not found and not entry.damage_path.exists():
        return None
    try:
        with FileLock(entry.lock_path).acquire():
            if not found:
                entry.damage_path.unlink()
                return None
            more = f"; and {len(found) - 1} more files" if len(found) > 1 else ""
            problem = f"{found[0].path.name}: {found[0].problem}{more}"
            durable.write_json(entry.damage_path, {"attempt": attempt, "problem": problem, "found": time.time()})
    except Locked as error:
        return f"some process is at work on it: {error}"
    except OSError as error:
        return f"{entry.damage_path} cannot be written: {error.strerror}"
    return None
