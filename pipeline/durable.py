"""Writing small files so that a crash leaves either the old content or the new one, never a mixture."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError


class DiskFull(PipelineError):
    """There was no room for what had to be written."""


class Refused(PipelineError):
    """The system does not let us read or write a file: a read-only file system, missing rights, a full disk."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSALS = (errno.EROFS, errno.EACCES, errno.EPERM, *_FULL)


def refusal(error: OSError) -> Refused | None:
    """What a person can do about an error of the system; None if nothing is known of it."""
    if error.errno not in _REFUSALS:
        return None
    advice = "Make room there" if error.errno in _FULL else "Make it accessible"
    return Refused(
        f"{error.strerror} ({error.filename or 'while writing'}).\n{advice}, or keep results elsewhere (--runs DIR). "
        "What was finished is whole; commands that only show what there is need not write."
    )


@contextmanager
def disk_full_explained(doing: str, directory: Path) -> Iterator[None]:
    """Turn "no space left" into a problem that the user can act on; every other error passes.

    Raises:
        DiskFull: names what was being done, what could not be written and how much is free.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(directory).free
        raise DiskFull(
            f"{doing} failed: {error.strerror} ({error.filename or 'while writing to the disk'}).\n"
            f"{free:,} bytes are free on the file system of {directory}. Nothing that was not whole counts as "
            "done: free some space and run the same command again."
        ) from error


def sync(path: Path) -> None:
    """Force a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step.

    Raises:
        OSError: nothing was replaced, and no temporary file is left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON in one step; see ``write_text``."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def replace_link(path: Path, target: Path) -> None:
    """Make ``path`` a relative symbolic link to ``target`` in one step, replacing another link.

    Raises:
        OSError: ``path`` is a real file or directory, or cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # two runs may link one result at once
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, path.parent.resolve()), target_is_directory=True)
    try:
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
