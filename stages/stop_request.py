"""How a stage's process learns that it should save and end."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil

RUNNER_VARIABLE = "TOKENFERRY_RUNNER"
"""Environment variable in which the runner says who it is: ``host:pid``."""

STOP_FILE = "stop"
"""In the attempt's directory: the runner asks every rank to stop, also those that no signal of its reaches."""

HEARTBEAT = "heartbeat"
"""In the attempt's directory: the runner touches it every few seconds, and removes it in the end."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Each asks to save and end; SIGUSR1 is what many clusters send before they take a node away."""

HEARTBEAT_SECONDS = 600.0
"""A rank that does not descend from the runner gives it this long, for a tracking server may hold it up."""

_CHECK_SECONDS = 1.0


class StopRequest:
    """True once a signal or the runner asked this process to stop, or once the runner or the launcher is gone.

    A runner that dies without a word cannot ask; the stage then saves and ends rather than train on unseen.
    """

    def __init__(self, attempt: Path) -> None:
        self._asked = False
        self._stop_file = attempt / STOP_FILE
        self._runner_gone = _watch_runner(attempt)
        self._checked = time.monotonic()

    def install(self) -> StopRequest:
        """Handle ``SIGNALS`` from now on; a second SIGINT ends the process at once."""
        for number in SIGNALS:
            signal.signal(number, self._handle)
        return self

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._asked and now - self._checked >= _CHECK_SECONDS:
            self._checked = now
            self._asked = self._stop_file.exists() or self._runner_gone()
        return self._asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _watch_runner(attempt: Path) -> Callable[[], bool]:
    """A function that tells whether the runner of this process, or a launcher between the two, has died."""
    host, _, pid = os.environ.get(RUNNER_VARIABLE, "").rpartition(":")
    line = _ancestors()
    if host == socket.gethostname() and int(pid) in line:
        line = line[: line.index(int(pid)) + 1]
        return lambda: _ancestors()[: len(line)] != line
    heartbeat = attempt / HEARTBEAT
    if heartbeat.exists() and time.time() - heartbeat.stat().st_mtime < HEARTBEAT_SECONDS:
        return _Heartbeat(heartbeat)
    return lambda: False  # a person pasted the command


def _ancestors() -> list[int]:
    """Our parent, its parent, and so on. Whoever loses its parent gets another, so a death anywhere shows."""
    found = [os.getppid()]
    try:
        while found[-1] > 1 and (parent := psutil.Process(found[-1]).ppid()):
            found.append(parent)
    except psutil.Error:
        pass
    return found


class _Heartbeat:
    """Whether a file has not been touched for ``HEARTBEAT_SECONDS`` of this machine's clock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: int | None = None
        self._since = time.monotonic()

    def __call__(self) -> bool:
        try:
            touched = self._path.stat().st_mtime_ns
        except OSError:
            touched = self._seen
        if touched != self._seen:
            self._seen, self._since = touched, time.monotonic()
        return time.monotonic() - self._since > HEARTBEAT_SECONDS
