"""Plain lines while a run is at work, for logs and pipes; and the thread that looks at what a run writes."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import IO

from pipeline.views.display import clock, duration, stopping_line
from pipeline.views.progress import Follower, Pace, is_remark, printable, share_of

PLAIN_SECONDS = 10.0
"""Of one stage, lines that count its progress are at least so far apart."""

STILL_SECONDS = 60.0
"""A stage of which nothing new is known is said to live at least so far apart."""

_LOOK_SECONDS = 0.25


class Following:
    """A thread that looks at what the run has written, every so often, from entering to leaving."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="view", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look a last time, and end."""
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            ended = self._end.wait(_LOOK_SECONDS)
            with contextlib.suppress(OSError):  # a file system that does not answer now may do so later
                self._look()


class PlainView:
    """Lines for logs and pipes: of each stage's progress one now and then, with the time that remains."""

    def __init__(
        self,
        follower: Follower,
        file: IO[str],
        *,
        verbose: bool = False,
        quiet: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stages, self._file, self._quiet, self._now = follower.stages, file, quiet, now
        self._following = Following(lambda: self._show_chatter(follower.poll())) if verbose else None
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)
        self._counted: dict[str, float] = {}  # stage -> when a line was written that counts, or says that it lives
        self._written: dict[str, tuple[float, str]] = {}  # stage -> when a line was written, and the stage's own words
        self._writing = threading.Lock()  # stages may run side by side, each watched by a thread

    def __enter__(self) -> PlainView:
        if self._following:
            self._following.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._following:
            self._following.stop()

    def line(self, text: str) -> None:
        """Shown unless the view is quiet."""
        if not self._quiet:
            self._write(text)

    def progress(self, stage: str, text: str) -> None:
        """A line that counts is shown now and then, and when all is done; others at once."""
        now, share = self._now(), share_of(text)
        if is_remark(text):
            self._written[stage] = (now, text)
            self._write(f"{stage}: {printable(text)}")
            return
        self._paces[stage].update(text, now)
        counting = share is not None and share < 1
        if self._quiet or (counting and now - self._counted.get(stage, -math.inf) < PLAIN_SECONDS):
            return
        if counting:
            self._counted[stage] = now
        self._written[stage] = (now, text)
        self._write(f"{stage}: {printable(text)}{self._eta(stage, text)}")

    def stopping(self, stage: str) -> None:
        """Shown unless the view is quiet."""
        self.line(stopping_line(stage))

    def still(self, stage: str, seconds: float, text: str) -> None:
        """Shown now and then, so that a person sees that it lives; sooner if ``text`` was left out when it came."""
        now = self._now()
        written, words = self._written.get(stage, (-math.inf, ""))
        if self._quiet or now - written < (STILL_SECONDS if words == text else PLAIN_SECONDS):
            return
        self._counted[stage] = now
        self._written[stage] = (now, text)
        expected = self._stages[stage].expected
        known = self._eta(stage, text)
        if not known and expected is not None and expected > seconds:
            known = f"  ETA {clock(expected - seconds)} by earlier runs"
        self._write(f"{stage}: {duration(seconds)}, {printable(text)}{known}")

    def _eta(self, stage: str, text: str) -> str:
        remaining = self._paces[stage].remaining(self._now())
        counts = share_of(text) is not None and "ETA " not in text
        return f"  ETA {clock(remaining)}" if counts and remaining is not None else ""

    def _show_chatter(self, chatter: Iterable[tuple[str, str]]) -> None:
        for stage, line in chatter:
            self._write(f"{stage} | {line}")

    def _write(self, text: str) -> None:
        with self._writing:
            print(text, file=self._file, flush=True)
