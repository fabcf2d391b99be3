"""Exclusive file locks that the kernel frees when their last holder dies (runner rule R13).

``flock`` belongs to the open file, not to the process: a child that inherits the descriptor holds the lock
too. The runner hands its descriptors to the stage process on purpose, so that a stage that outlives its runner
keeps others away from the directory it still writes to.

On a file system without ``flock`` a lease takes its place (``pipeline.executing.leases``).
"""

from __future__ import annotations

import contextlib
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

from pipeline.errors import Locked
from pipeline.executing import leases
from stages.masking import environment_secrets, mask_text
from stages.ranks import NO_FLOCK

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
        return not _try_flock(descriptor, fcntl.LOCK_SH)
    except _NoFlock:
        return leases.is_held(path)
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

    A context manager.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._lease: str | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open file that holds the lock, for ``subprocess``' ``pass_fds``; none of a lease."""
        return () if self._descriptor is None else (self._descriptor,)

    @property
    def is_lease(self) -> bool:
        """Whether the file system has no ``flock``, so that a lease stands for it."""
        return self._lease is not None

    def acquire(self) -> FileLock:
        """Take the lock or refuse.

        Raises:
            Locked: another process holds it; the message says which.
        """
        deadline = time.monotonic() + _PROBE_SECONDS
        while not self._try():
            if time.monotonic() >= deadline:
                raise Locked(f"{self.path} is held by {describe_holder(self.path)}")
            time.sleep(0.02)
        return self

    def wait(self, waiting: Callable[[], None]) -> FileLock:
        """Take the lock however long it takes; ``waiting`` is called at every poll and may raise to give up."""
        while not self._try():
            waiting()
            time.sleep(_POLL_SECONDS)
        return self

    def release(self) -> None:
        """Close the file. Children that inherited it keep the lock, so it is never unlocked explicitly."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._lease is not None:
            leases.release(self.path, self._lease)
            self._lease = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                taken = _try_flock(descriptor, fcntl.LOCK_EX) and _still_named(descriptor, self.path)
            except _NoFlock:
                self._lease = leases.take(self.path, _own_info())
                taken = self._lease is not None
            if taken:
                with contextlib.suppress(
                    OSError
                ):  # on a full disk others cannot read who holds it; it holds all the same
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, json.dumps(_own_info()).encode())
                if not self.is_lease:
                    self._descriptor, descriptor = descriptor, -1
        finally:
            if descriptor != -1:  # or an error would leave the file locked until this process ends
                os.close(descriptor)
        return taken


class _NoFlock(Exception):
    """The file system has no ``flock``."""


def _try_flock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_FLOCK:
            raise _NoFlock from None
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
        "command": mask_text(shlex.join(sys.argv), environment_secrets()),
    }
    if "SLURM_JOB_ID" in os.environ:
        info["slurm_job"] = os.environ["SLURM_JOB_ID"]
    return info
