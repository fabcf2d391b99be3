"""Content digests of files and directories, remembered so that a plan does not read gigabytes again."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

_SETTLED_SECONDS = 2.0


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
        memo: JSON file of earlier digests, by path, size, mtime_ns and inode; None reads everything.
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
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ino]
    entry = known.get(str(path.resolve()))
    if entry is not None and entry[:3] == state:
        return str(entry[3])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A file written a moment ago may change again within one tick of the file system's clock.
    if time.time() - status.st_mtime > _SETTLED_SECONDS:
        known[str(path.resolve())] = [*state, digest]
    return digest


def _read_memo(memo: Path | None) -> dict[str, list[int | str]]:
    if memo is None or not memo.exists():
        return {}
    try:
        return json.loads(memo.read_text(encoding="utf-8"))
    except ValueError:
        # Only a cache: a damaged one costs hashing again.
        return {}


def _write_memo(memo: Path, known: dict[str, list[int | str]]) -> None:
    memo.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=memo.parent, delete=False) as file:
        json.dump(known, file, sort_keys=True)
    os.replace(file.name, memo)
