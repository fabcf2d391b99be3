"""Writing the artifact store: opening an attempt and publishing what it made (runner rules R7 and R8).

The commit point is the replacement of DONE.json, which names the attempt's own directory ``out.<attempt>``. A
kill at any earlier moment leaves the previous result, or none; a kill at any later one leaves the new result.
``out`` is a link for people, repaired by ``link_output`` whenever a result is used.

Every function that changes an entry expects the caller to hold its lock.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import durable, provenance
from pipeline.store import Attempt, Done, Entry, FileRecord
from stages.artifacts import Artifact, ArtifactError


def begin_attempt(entry: Entry, ingredients: Mapping[str, Any], upstream: Mapping[str, str] | None = None) -> Attempt:
    """Open the next attempt: its directory, an empty ``out.partial-<n>``, and ``work`` as earlier ones left it.

    What dead attempts left beside ``work`` is removed; a published result is not touched. ``work`` is emptied if it was
    begun with other inputs: a forced attempt upstream gives another result under the same key, and checkpoints of a
    model that started from the old one must not be continued. So it is if its attempt made the result.

    Args:
        entry: the store entry; the caller holds its lock.
        ingredients: what was hashed into the key.
        upstream: stage name -> ``result_id`` of the inputs of this attempt.

    Raises:
        StoreError: the entry holds the result of another key.
    """
    done, spent = entry.done(), entry.work_is_spent()
    numbers = [attempt.number for attempt in entry.attempts()]
    for path, number in _outputs(entry):
        numbers.append(number)
        damaged_result = entry.done_path.exists() and done is None and path == entry.output_directory(number)
        if not damaged_result and (done is None or path != entry.output_directory(done.attempt)):
            shutil.rmtree(path)
    number = max(numbers, default=0) + 1
    attempt = Attempt(number, entry.path / "attempts" / str(number), {})
    attempt.path.mkdir(parents=True)
    used = sorted((upstream or {}).values())
    if spent or entry.begun_with() != used:
        shutil.rmtree(entry.work, ignore_errors=True)
    entry.work.mkdir(exist_ok=True)
    durable.write_json(entry.work / "inputs.json", used)
    entry.partial_directory(number).mkdir()
    durable.write_json(entry.path / "ingredients.json", ingredients)
    return attempt


def discard_work(entry: Entry) -> None:
    """Forget what earlier attempts left to go on from."""
    shutil.rmtree(entry.work, ignore_errors=True)


def _outputs(entry: Entry) -> list[tuple[Path, int]]:
    """Every output directory of the entry, published or not, with its attempt number."""
    found = ((path, re.fullmatch(r"out\.(?:partial-)?(\d+)", path.name)) for path in entry.path.glob("out.*"))
    return [(path, int(match.group(1))) for path, match in found if match]


def publish(
    entry: Entry,
    number: int,
    artifact: type[Artifact],
    *,
    ingredients: Mapping[str, Any],
    upstream: Mapping[str, str],
    run: str,
    seconds: float,
) -> Done:
    """Verify what attempt ``number`` wrote, make it the entry's result, and clear the entry's ``work``.

    Args:
        entry: the store entry; the caller holds its lock.
        number: the attempt, whose ``out.partial-<number>`` is complete.
        artifact: the declared output of the stage.
        ingredients: what was hashed into the key.
        upstream: stage name -> ``result_id`` of the inputs that were used.
        run: the recipe's name.
        seconds: how long the attempt took.

    Raises:
        ArtifactError: the directory is not the declared artifact; nothing was published.
        DiskFull: nothing was published.
    """
    partial = entry.partial_directory(number)
    if not partial.is_dir():
        raise ArtifactError(f"{partial} is gone: something deleted the stage's output directory")
    artifact.verify(partial)
    size = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    with durable.disk_full_explained(f"publishing the {size:,} bytes of {entry.path}", entry.path):
        manifest = _manifest(partial)
        commit, dirty = provenance.git_state()
        done = Done(
            key=entry.key,
            ingredients=ingredients,
            result_id=result_id(manifest),
            upstream=dict(upstream),
            manifest=manifest,
            attempt=number,
            run=run,
            seconds=seconds,
            finished=time.time(),
            metrics=_final_metrics(partial),
            versions=provenance.versions(),
            git_commit=commit,
            git_dirty=dirty,
            code=provenance.code_digest(),
        )
        os.rename(partial, entry.output_directory(number))
        durable.sync(entry.path)
        durable.write_json(entry.done_path, done.to_json())
        link_output(entry, number)
    entry.damage_path.unlink(missing_ok=True)  # it was of an earlier attempt's output
    # Its checkpoints served their purpose, and a forced attempt must start anew instead of from their end.
    shutil.rmtree(entry.work, ignore_errors=True)
    return done


def link_output(entry: Entry, number: int) -> None:
    """Point the link ``out`` at the result of attempt ``number``, unless it already does."""
    link, target = entry.path / "out", entry.output_directory(number)
    if not link.is_symlink() or os.readlink(link) != target.name:
        durable.replace_link(link, target)


def result_id(manifest: tuple[FileRecord, ...]) -> str:
    """sha256 hex of the manifest: the identity of a result's bytes (R2)."""
    text = json.dumps([asdict(file) for file in manifest], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _manifest(directory: Path) -> tuple[FileRecord, ...]:
    """Hash every file below ``directory`` in path order, and force all of it to the disk."""
    records = []
    # Safetensors files are born readable by their owner alone; a store may be shared.
    permissions = directory.stat().st_mode & 0o666
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise ArtifactError(f"{path} is a symbolic link; an artifact must hold its own files")
        if path.is_file():
            path.chmod(permissions)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            records.append(FileRecord(path.relative_to(directory).as_posix(), path.stat().st_size, digest))
        durable.sync(path)
    durable.sync(directory)
    return tuple(records)


def _final_metrics(directory: Path) -> dict[str, float]:
    """The artifact's ``metrics.json``: a flat object of finite numbers.

    Raises:
        ArtifactError: it is something else.
    """
    path = directory / "metrics.json"
    if not path.exists():
        return {}
    metrics = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(metrics, dict):
        raise ArtifactError(f"{path} must be a flat JSON object of numbers, it is a {type(metrics).__name__}")
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ArtifactError(f"{path}: {name} must be a finite number, it is {value!r}")
    return metrics
