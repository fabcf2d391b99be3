"""Watching a stage's processes: showing their progress, asking them to stop, and ending them (runner rule R14)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from pipeline.executing.deaths import rank_states
from pipeline.executing.signals import StopSignals
from pipeline.launchers.worker import JOB_FILE, MODULE
from pipeline.views.display import Display
from pipeline.views.tail import Tail
from stages.stop_request import HEARTBEAT, STOP_FILE
from stages.worker import PROGRESS_PREFIX

SILENCE_SECONDS = 10.0
"""A person sees a line at least this often."""

_POLL_SECONDS = 0.1
_HEARTBEAT_SECONDS = 5.0


@dataclass
class Watch:
    """One supervised stage process. A context manager: an error of ours asks the stage to stop.

    Attributes:
        name: the stage, for the lines that are shown.
        process: the leader of the stage's own process group.
        attempt: the attempt's directory, with ``log.txt``, the ranks' records and the heartbeat.
        grace_seconds: how long it may take to save once it was asked to stop.
        stop: the signals that this process received.
        show: takes what a person should see.
        poll: called at every turn of the loop; must not block.
    """

    name: str
    process: subprocess.Popen[bytes]
    attempt: Path
    grace_seconds: float
    stop: StopSignals
    show: Display
    poll: Callable[[], None]
    killed: bool = False
    _started: float = field(default_factory=time.monotonic)
    _shown: float = field(default_factory=time.monotonic)
    _last_line: str = "starting"
    _deadline: float | None = None
    _beat: float = 0.0

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # nobody will publish what it makes; it may save, and holds its locks until it has
            ask_to_stop(self.attempt, self.process)

    def wait(self) -> int:
        """Wait until the stage and everything it started has ended; returns the leader's exit code."""
        log = Tail(self.attempt / "log.txt")
        while self.process.poll() is None:
            if self.stop.count and self._deadline is None:
                self.show.stopping(self.name)
                self._ask()
            self._turn(log)
        if self.process.returncode != 0 and ranks_alive(self.attempt):
            self.show.line(f"{self.name}: its launcher has ended, its ranks are saving")
            if self._deadline is None:
                self._ask()
            while ranks_alive(self.attempt) and not self.killed:
                self._turn(log)
        # Nothing that the stage started may write on once the caller looks at the result or gives up its locks.
        self._kill_all()
        self._show_progress(log)
        self.poll()
        (self.attempt / HEARTBEAT).unlink(missing_ok=True)
        return self.process.returncode

    def _turn(self, log: Tail) -> None:
        """One turn of waiting: enforce the end of the grace, show what is new, keep the heart beating."""
        if self._deadline is not None and (self.stop.count > 1 or time.monotonic() > self._deadline):
            self.killed = True
            self._kill_all()
        self._show_progress(log)
        if time.monotonic() - self._beat > _HEARTBEAT_SECONDS:
            self._beat = time.monotonic()
            with contextlib.suppress(OSError):  # a full disk must not end a stage that would survive it
                (self.attempt / HEARTBEAT).touch()
                (self.attempt / HEARTBEAT).write_text(self._last_line + "\n", encoding="utf-8")
        self.poll()
        time.sleep(_POLL_SECONDS)

    def _ask(self) -> None:
        self._deadline = time.monotonic() + self.grace_seconds
        ask_to_stop(self.attempt, self.process)

    def _show_progress(self, log: Tail) -> None:
        for line in log.lines():
            if line.startswith(PROGRESS_PREFIX):
                self._last_line = line.removeprefix(PROGRESS_PREFIX)
                self._shown = time.monotonic()
                self.show.progress(self.name, self._last_line)
        if time.monotonic() - self._shown >= SILENCE_SECONDS:
            self._shown = time.monotonic()
            self.show.still(self.name, time.monotonic() - self._started, self._last_line)

    def _kill_all(self) -> None:
        """Kill the group, and the ranks: torchrun gives each a session of its own, where no signal of ours arrives."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        kill_ranks(self.attempt)


def ranks_alive(attempt: Path) -> list[str]:
    """The ranks of an attempt that still live, on whatever machine, in words."""
    return [str(state) for state in rank_states(attempt) if state.alive]


def ask_to_stop(attempt: Path, launcher: subprocess.Popen[bytes] | None = None) -> None:
    """Ask every rank of an attempt to save and end.

    Launchers are left alone while they have ranks: DeepSpeed's kills them 30 s after a SIGTERM, and srun at once. The
    ranks here get a signal; those elsewhere see the file, or hear of it from the others at the next step.
    """
    with contextlib.suppress(OSError):  # no room for it on a full disk
        (attempt / STOP_FILE).touch()
    ranks = rank_states(attempt)
    here = {state.pid for state in ranks if state.alive and state.host == socket.gethostname()}
    for process in _processes(attempt):
        if process.pid in here:
            with contextlib.suppress(psutil.Error):
                process.terminate()
    if launcher is None:
        return
    if not ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGTERM)
    elif launcher.args[0] == "srun":  # passes this one on to its tasks
        launcher.send_signal(signal.SIGUSR1)


def kill_ranks(attempt: Path) -> None:
    """Kill every process on this machine that works on an attempt, with what they forked."""
    for process in _processes(attempt):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _processes(attempt: Path) -> list[psutil.Process]:
    """Launchers, ranks and data workers of an attempt on this machine: all have its job file on their command line."""
    named = {MODULE, str(attempt.resolve() / JOB_FILE)}
    return [process for process in psutil.process_iter(["cmdline"]) if named <= set(process.info["cmdline"] or ())]
