"""Exclusive file locks that the kernel frees when their last holder dies (runner rule R13).

``flock`` belongs to the open file, not to the process: a child that inherits the descriptor holds the lock
too. The runner hands its descriptors to the stage process on purpose, so that a stage that outlives its runner
keeps others away from the directory it still writes to.
"""

from __future__ import annotations

import errno
import fcntl
import getpass
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import Locked, PipelineError

_PROBE_SECONDS = 0.3
"""How long an acquisition tries before it believes that the lock is held: ``is_locked`` takes it briefly."""

_POLL_SECONDS = 0.5


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock on ``path``; False if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not _try_flock(descriptor, fcntl.LOCK_SH, path)
    finally:
        os.close(descriptor)


def holder(path: Path) -> Mapping[str, Any]:
    """Who took the lock last, as written into the file: good for a message, never for a decision."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def describe_holder(path: Path) -> str:
    """``holder`` as a phrase for a person."""
    info = holder(path)
    if not info:
        return "an unknown process"
    who = f"pid {info.get('pid')} on {info.get('host')} (user {info.get('user')})"
    return f"{who}, since {info.get('start')}: {info.get('command')}"


class FileLock:
    """An exclusive ``flock`` on a file, held from ``acquire`` until ``release`` or the death of every holder.

    A context manager. ``descriptor`` is inheritable through ``subprocess``' ``pass_fds``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """The open file that holds the lock."""
        if self._descriptor is None:
            raise RuntimeError(f"{self.path} is not locked")
        return self._descriptor

    def acquire(self) -> FileLock:
        """Take the lock or refuse.

        Raises:
            Locked: another process holds it; the message says which.
            PipelineError: the file system has no ``flock``.
        """
        deadline = time.monotonic() + _PROBE_SECONDS
        while not self._try():
            if time.monotonic() >= deadline:
                raise Locked(f"{self.path} is held by {describe_holder(self.path)}")
            time.sleep(0.02)
        return self

    def wait(self, waiting: Callable[[], None]) -> FileLock:
        """Take the lock however long it takes; ``waiting`` is called at every poll and may raise to give up.

        Raises:
            PipelineError: the file system has no ``flock``.
        """
        while not self._try():
            waiting()
            time.sleep(_POLL_SECONDS)
        return self

    def release(self) -> None:
        """Close the file. Children that inherited it keep the lock, so it is never unlocked explicitly."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _try_flock(descriptor, fcntl.LOCK_EX, self.path) or not _still_named(descriptor, self.path):
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(_own_info()).encode())
        self._descriptor = descriptor
        return True


def _try_flock(descriptor: int, operation: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise PipelineError(
                f"the file system of {path} has no flock ({error.strerror}): two runs could overwrite each "
                "other.\nUse a directory on a file system with locks (--runs DIR)."
            ) from None
        raise
    return True


def _still_named(descriptor: int, path: Path) -> bool:
    """Whether ``path`` is still the file that was locked: someone may have deleted it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _own_info() -> dict[str, Any]:
    info = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "user": getpass.getuser(),
        "start": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.argv),
    }
    if "SLURM_JOB_ID" in os.environ:
        info["slurm_job"] = os.environ["SLURM_JOB_ID"]
    return info
