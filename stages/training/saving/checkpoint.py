"""Training checkpoints that are either whole or not there (runner rule R9).

A checkpoint is a directory ``step-N`` that counts only once it holds ``COMPLETE.json``, written last, after every
process has written its part. The marker lists the size and a checksum of every file, so that damage is noticed before
anything is loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stages.stage import StageConfig, StageError
from stages.training.backends import process_group

MARKER = "COMPLETE.json"
_CHECKSUM = "crc32"


def _step(directory: Path) -> int | None:
    number = directory.name.removeprefix("step-")
    return int(number) if number.isdigit() and directory.name.startswith("step-") else None


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def _facts(path: Path) -> dict[str, int]:
    return {"size": path.stat().st_size, "crc32": _checksum(path)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def directory(root: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` is, or will be."""
    return root / f"step-{step}"


def begin(root: Path, step: int) -> Path:
    """An empty directory for the checkpoint of ``step``; what an interrupted attempt left there is removed."""
    empty = directory(root, step)
    shutil.rmtree(empty, ignore_errors=True)
    empty.mkdir(parents=True)
    return empty


def seal(directory: Path, rank: int, names: Iterable[str]) -> None:
    """Sync and checksum files that this process has written into a checkpoint, so that no other process need read them.

    Args:
        directory: what ``begin`` returned.
        rank: of this process.
        names: of the files.
    """
    for name in names:
        _sync(directory / name)
    facts = {name: _facts(directory / name) for name in names}
    (directory / f"files-{rank:05d}.json").write_text(json.dumps(facts), encoding="utf-8")


def complete(directory: Path, state: Mapping[str, Any]) -> None:
    """Mark a checkpoint as whole. Call on one process, after all have written and a barrier has passed.

    Args:
        directory: what ``begin`` returned.
        state: JSON facts to resume from (step, data position, layout, …).
    """
    files: dict[str, dict[str, int]] = {}
    for path in directory.glob("files-*.json"):
        files |= json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in files:
            files[name] = _facts(path)
            _sync(path)
    temporary = directory / f"{MARKER}.tmp"
    marker = {**state, "files": files}
    temporary.write_text(json.dumps(marker | {_CHECKSUM: _text_checksum(marker)}), encoding="utf-8")
    _sync(temporary)
    temporary.replace(directory / MARKER)
    _sync(directory)
    _sync(directory.parent)


def prune(root: Path, step: int, keep: int) -> None:
    """Remove all but the newest ``keep`` complete checkpoints and the ones that these name as the best so far.

    Args:
        step: of the checkpoint that was completed last. Newer ones were passed over as damaged and are removed too:
            kept, they would take the place of ones that are whole.
    """
    steps = sorted(((_step(path), path) for path in root.glob("step-*") if _step(path) is not None), reverse=True)
    complete_ones = [path for number, path in steps if number <= step and (path / MARKER).exists()]
    if not complete_ones:
        return
    kept = set(complete_ones[:keep])
    kept |= {directory(root, step) for path in complete_ones[:keep] if (step := _best_step(path)) is not None}
    for _, path in steps:
        if path not in kept:
            # Without its marker it no longer counts, so a kill in the middle of the removal leaves nothing half-valid.
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def _best_step(directory: Path) -> int | None:
    """The step of the best checkpoint when this one was saved; None if there was none, or the marker is damaged."""
    try:
        best = read_marker(directory).get("best")
    except ValueError:
        return None
    return best["step"] if best else None


def damage(directory: Path, share: int = 0, shares: int = 1) -> str | None:
    """What is wrong with a checkpoint, for a person; None when it is whole.

    Args:
        directory: of the checkpoint.
        share, shares: check the content of every ``shares``-th file only, from number ``share`` on.
    """
    try:
        expected = read_marker(directory)["files"]
    except FileNotFoundError:
        return "it was never completed"
    except (ValueError, KeyError):
        return f"its {MARKER} is damaged"
    for number, (name, facts) in enumerate(sorted(expected.items())):
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["size"] or (number % shares == share and _facts(path) != facts):
            return f"{name} is not what was saved (size or checksum differ)"
    return None


def read_marker(directory: Path) -> dict[str, Any]:
    """What ``complete`` was given, and the files.

    Raises:
        FileNotFoundError: the checkpoint is not whole.
        ValueError: it is no JSON object, or not the one that was written: a single wrong digit would move the data on.
    """
    marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
    if not isinstance(marker, dict):
        raise ValueError(f"{directory / MARKER} holds no JSON object")
    expected = marker.pop(_CHECKSUM, None)  # checkpoints of earlier versions have none
    if expected is not None and expected != _text_checksum(marker):
        raise ValueError(f"{directory / MARKER} is not what was written")
    return marker


def _text_checksum(marker: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(marker).encode())


def latest(root: Path, report: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint under ``root`` and its state; None when there is none.

    Collective: the first process says which are there, each checks its share of the files, all come to one verdict.

    Args:
        root: the directory that holds ``step-N`` directories.
        report: told, in a sentence, about each newer checkpoint that had to be passed over.
    """
    found = sorted((step for path in root.glob("step-*") if (step := _step(path)) is not None), reverse=True)
    for step in process_group.gathered(found)[0]:
        path = directory(root, step)
        problems = process_group.gathered(damage(path, process_group.rank(), process_group.size()))
        problem = next((each for each in problems if each is not None), None)
        if problem is None:
            return path, read_marker(path)
        report(f"passing over checkpoint {path.name}: {problem}")
    return None


def options(config: StageConfig) -> dict[str, Any]:
    """The options that decide what a training computes: what a checkpoint must agree with to be gone on from."""
    return config.model_dump(mode="json", exclude=_not_keyed(config))


def _not_keyed(config: BaseModel) -> dict[str, Any]:
    """The fields of a model, and of those inside it, that stay out of the cache key: as pydantic excludes them."""
    excluded: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if not (field.json_schema_extra or {}).get("keyed", True):
            excluded[name] = True
        elif isinstance(value, BaseModel) and (inner := _not_keyed(value)):
            excluded[name] = inner
    return excluded


def check_origin(directory: Path, saved: Mapping[str, Any], config: StageConfig) -> None:
    """Make sure that a checkpoint is of the training at hand.

    Args:
        directory: of the checkpoint.
        saved: ``options`` of the training that saved it.
        config: of the training at hand.

    Raises:
        StageError: names the options that differ.
    """
    here = options(config)
    differences = [
        f"{name} was {json.dumps(saved.get(name))} and is {json.dumps(here.get(name))}"
        for name in sorted(saved.keys() | here.keys())
        if saved.get(name) != here.get(name)
    ]
    if differences:
        raise StageError(
            f"{directory} is a checkpoint of another recipe: {'; '.join(differences)}. Go back to these options, or "
            f"remove {directory.parent} to start this stage again"
        )


def check_space(root: Path, size: int, keep: int) -> None:
    """Refuse to train towards checkpoints that the disk cannot hold; before the first is written. Collective.

    Args:
        root: the directory that holds, or will hold, the checkpoints.
        size: bytes of one.
        keep: how many complete ones stay; one more is there while it is written.

    Raises:
        StageError: with the numbers.
    """
    root.mkdir(parents=True, exist_ok=True)
    present = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    present, free = process_group.gathered((present, shutil.disk_usage(root).free))[0]
    if (keep + 1) * size - present > free:
        raise StageError(
            f"not enough disk for the planned checkpoints: {keep + 1} of {_gibibytes(size)} each, of which "
            f"{_gibibytes(present)} are there, but {root} has only {_gibibytes(free)} left. Make room, or lower "
            "keep_checkpoints"
        )


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
