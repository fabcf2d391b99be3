"""Content digests of files and directories, remembered so that a plan does not read gigabytes again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

_SETTLED_SECONDS = 2.0
"""Times of files are coarse: one that is younger may change again and keep its times."""


def list_files(directory: Path) -> list[Path]:
    """All files below ``directory`` in the order of their relative names, but hidden ones and ``__pycache__``."""
    found = []
    for folder, subfolders, names in os.walk(directory, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name != "__pycache__"]
        found.extend(Path(folder, name) for name in names if not name.startswith("."))
    return sorted(found, key=lambda path: path.relative_to(directory).parts)


def content_digest(path: Path, memo: Path | None = None, patterns: Sequence[str] | None = None) -> str:
    """SHA-256 (hex) of a file's bytes, or of a directory's relative file names and their digests.

    Args:
        path: file or directory.
        memo: JSON file of earlier digests, by path, size, times of change (mtime_ns, ctime_ns) and inode; None reads
            everything. The second time cannot be set by hand or by a copying program, so what they put in place of a
            file is seen whatever its size and age.
        patterns: of a directory, take only the files that lie directly in it under a name that matches one of these.
    """
    known = _read_memo(memo)
    before = dict(known)
    if path.is_file():
        digest = _file_digest(path, known)
    else:
        files = list_files(path) if patterns is None else _matching_files(path, patterns)
        lines = [f"{_file_digest(file, known)} {file.relative_to(path).as_posix()}\n" for file in files]
        digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    if memo is not None and known != before:
        # Another process may have added to it meanwhile: what it found is kept.
        _write_memo(memo, _read_memo(memo) | known)
    return digest


def _matching_files(directory: Path, patterns: Sequence[str]) -> list[Path]:
    return [
        path
        for path in sorted(directory.iterdir())
        if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in patterns)
    ]


def _file_digest(path: Path, known: dict[str, list[int | str]]) -> str:
    state, settled = _state(path)
    entry = known.get(str(path.resolve()))
    if entry is not None and entry[:-1] == state:
        return str(entry[-1])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if settled and _state(path)[0] == state:
        known[str(path.resolve())] = [*state, digest]
    return digest


def _state(path: Path) -> tuple[list[int], bool]:
    """What a change of a file changes, and whether its last change is so long ago that the next must show in it."""
    status = path.stat()
    age = time.time() - max(status.st_mtime, status.st_ctime)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino], age > _SETTLED_SECONDS


def _read_memo(memo: Path | None) -> dict[str, list[int | str]]:
    if memo is None or not memo.exists():
        return {}
    try:
        return json.loads(memo.read_text(encoding="utf-8"))
    except ValueError:
        # Only a cache: a damaged one costs hashing again.
        return {}


def _write_memo(memo: Path, known: dict[str, list[int | str]]) -> None:
    text = json.dumps(known, sort_keys=True)
    # Where there is no room or no right to write, only time is lost: what there is can still be looked at.
    with contextlib.suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=memo.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, memo)
        except OSError:
            os.unlink(name)
            raise
