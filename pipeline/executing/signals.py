"""Signals that ask a command to stop (runner rule R14).

SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 mean the same: save, end with exit code 75, go on later. SIGUSR1 needs no option:
batch systems send it as a warning before they take a machine away, and left alone it would kill Python on the spot.
"""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

from pipeline.errors import Interrupted
from stages.stop_request import SIGNALS

_POLL_SECONDS = 0.1


class StopSignals:
    """Counts the signals that ask to stop while the context is entered; the previous handlers come back afterwards."""

    def __init__(self) -> None:
        self.count = 0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> bool:
        """Wait so long, in any thread; False as soon as a signal asks to stop."""
        end = time.monotonic() + seconds
        while not self.count:
            left = end - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(left, _POLL_SECONDS))
        return False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A batch system may send SIGTERM more than once; only a person who presses Ctrl-C again wants no saving.
        self.count = self.count + 1 if number == signal.SIGINT else max(self.count, 1)


class _Asked(BaseException):
    """Raised where the signal arrives. A BaseException, so that no ``except Exception`` takes it for a failure."""


class StopsBetween:
    """While the context is entered and no stage is at work, SIGTERM and SIGUSR1 end the command with exit code 75.

    ``runner.execute`` puts ``StopSignals`` in their place while it works. Before and after it, a command only reads:
    there is nothing to save, and a job that is preempted then is to be requeued as at any other time.

    Args:
        command: the command line to go on with.

    Raises:
        Interrupted: on leaving, if one of the signals ended what was going on.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopsBetween:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, _Asked):
            raise Interrupted(f"{error} while no stage was at work; nothing was lost. Go on with: {self._command}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise _Asked(f"stopped by {signal.Signals(number).name}")
