"""Watching a stage process: showing its progress, passing signals on, and ending it (runner rule R14)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType

import psutil

from pipeline.tail import Tail
from stages.worker import PROGRESS_PREFIX

SILENCE_SECONDS = 10.0
"""A person sees a line at least this often."""

_POLL_SECONDS = 0.1
_HEARTBEAT_SECONDS = 5.0


class StopSignals:
    """Counts SIGINT and SIGTERM while the context is entered; the previous handlers come back afterwards."""

    def __init__(self) -> None:
        self.count = 0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


@dataclass
class Watch:
    """One supervised stage process. A context manager: an error of ours asks the stage to stop.

    Attributes:
        name: the stage, for the lines that are shown.
        process: the leader of the stage's own process group.
        attempt: the attempt's directory, with ``log.txt`` and ``heartbeat``.
        grace_seconds: how long it may take to save once it was asked to stop.
        stop: the signals that this process received.
        show: prints one line for a person.
        poll: called at every turn of the loop; must not block.
    """

    name: str
    process: subprocess.Popen[bytes]
    attempt: Path
    grace_seconds: float
    stop: StopSignals
    show: Callable[[str], None]
    poll: Callable[[], None]
    killed: bool = False
    _started: float = field(default_factory=time.monotonic)
    _shown: float = field(default_factory=time.monotonic)
    _last_line: str = "starting"

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # nobody will publish what it makes; it may save, and holds its locks until it has
            self._signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until the stage and everything it started has ended; returns the leader's exit code."""
        log = Tail(self.attempt / "log.txt")
        deadline: float | None = None
        beat = 0.0
        while self.process.poll() is None:
            if self.stop.count and deadline is None:
                deadline = time.monotonic() + self.grace_seconds
                self.show(f"{self.name}: saving, Ctrl-C again to kill")
                self._signal(signal.SIGTERM)
            if deadline is not None and (self.stop.count > 1 or time.monotonic() > deadline):
                self.killed = True
                self._kill_all()
            self._show_progress(log)
            if time.monotonic() - beat > _HEARTBEAT_SECONDS:
                beat = time.monotonic()
                with contextlib.suppress(OSError):  # a full disk must not end a stage that would survive it
                    (self.attempt / "heartbeat").write_text(self._last_line + "\n", encoding="utf-8")
            self.poll()
            time.sleep(_POLL_SECONDS)
        # Nothing that the stage started may write on once the caller looks at the result or gives up its locks.
        self._kill_all()
        self._show_progress(log)
        self.poll()
        return self.process.returncode

    def _show_progress(self, log: Tail) -> None:
        for line in log.lines():
            if line.startswith(PROGRESS_PREFIX):
                self._last_line = line.removeprefix(PROGRESS_PREFIX)
                self._shown = time.monotonic()
                self.show(f"{self.name}: {self._last_line}")
        if time.monotonic() - self._shown >= SILENCE_SECONDS:
            self._shown = time.monotonic()
            self.show(f"{self.name}: {duration(time.monotonic() - self._started)}, {self._last_line}")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _kill_all(self) -> None:
        """Kill the group, and the ranks: torchrun gives each a session of its own, where no signal of ours arrives."""
        self._signal(signal.SIGKILL)
        worker = set(self.process.args[-2:])  # stages.worker and its job file
        for process in psutil.process_iter(["cmdline"]):
            if worker <= set(process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def duration(seconds: float) -> str:
    """A length of time for a person: ``4.2 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
