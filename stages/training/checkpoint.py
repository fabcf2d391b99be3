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
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKER = "COMPLETE.json"


def _step(directory: Path) -> int | None:
    number = directory.name.removeprefix("step-")
    return int(number) if number.isdigit() and directory.name.startswith("step-") else None


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def _files(directory: Path) -> dict[str, dict[str, int]]:
    return {
        path.relative_to(directory).as_posix(): {"size": path.stat().st_size, "crc32": _checksum(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MARKER
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin(root: Path, step: int) -> Path:
    """An empty directory for the checkpoint of ``step``; what an interrupted attempt left there is removed."""
    directory = root / f"step-{step}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def complete(directory: Path, state: dict[str, Any]) -> None:
    """Mark a checkpoint as whole. Call on one process, after all have written and a barrier has passed.

    Args:
        directory: what ``begin`` returned.
        state: JSON facts to resume from (step, data position, world size, …).
    """
    for path in directory.rglob("*"):
        _sync(path)
    temporary = directory / f"{MARKER}.tmp"
    temporary.write_text(json.dumps({**state, "files": _files(directory)}), encoding="utf-8")
    _sync(temporary)
    temporary.replace(directory / MARKER)
    _sync(directory)
    _sync(directory.parent)


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` complete checkpoints, incomplete ones included."""
    steps = sorted(((_step(path), path) for path in root.glob("step-*") if _step(path) is not None), reverse=True)
    complete_ones = [path for _, path in steps if (path / MARKER).exists()]
    if not complete_ones:
        return
    kept = set(complete_ones[:keep])
    for _, path in steps:
        if path not in kept:
            # Without its marker it no longer counts, so a kill in the middle of the removal leaves nothing half-valid.
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint, for a person; None when it is whole."""
    try:
        state = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        expected = state["files"]
    except FileNotFoundError:
        return "it was never completed"
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError):
        return f"its {MARKER} is damaged"
    found = _files(directory)
    for name, facts in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != facts:
            return f"{name} is not what was saved (size or checksum differ)"
    return None


def latest(root: Path, report: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint under ``root`` and its state; None when there is none.

    Args:
        root: the directory that holds ``step-N`` directories.
        report: told, in a sentence, about each newer checkpoint that had to be passed over.
    """
    steps = [(_step(path), path) for path in root.glob("step-*")]
    for _, path in sorted(((step, path) for step, path in steps if step is not None), reverse=True):
        problem = damage(path)
        if problem is None:
            return path, json.loads((path / MARKER).read_text(encoding="utf-8"))
        report(f"passing over checkpoint {path.name}: {problem}")
    return None
