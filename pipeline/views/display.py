"""What the runner tells a person, and the plainest way to show it. Light: read for ``pipeline --help``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

Mode = Literal["auto", "live", "plain", "quiet"]
MODES: tuple[Mode, ...] = get_args(Mode)
"""Ways to show a run; ``auto`` is ``live`` on a terminal, else ``plain``."""


class Display(Protocol):
    """Takes what a run has to say; may be called from several threads at once."""

    def line(self, text: str) -> None:
        """A milestone: a stage begins, is done, waits, was asked to stop."""

    def progress(self, stage: str, text: str) -> None:
        """How far a stage is, in its own words."""

    def stopping(self, stage: str) -> None:
        """A stage was asked to save and to stop."""

    def still(self, stage: str, seconds: float, text: str) -> None:
        """A stage is at work since so many seconds, and has said nothing new for some; ``text`` was the last."""


@dataclass(frozen=True)
class Lines:
    """Everything as a line, as it comes."""

    out: Callable[[str], None]

    def line(self, text: str) -> None:
        """As it is."""
        self.out(text)

    def progress(self, stage: str, text: str) -> None:
        """With the name of the stage."""
        self.out(f"{stage}: {text}")

    def stopping(self, stage: str) -> None:
        """What a second Ctrl-C does."""
        self.out(stopping_line(stage))

    def still(self, stage: str, seconds: float, text: str) -> None:
        """With the name of the stage and how long it is at work."""
        self.out(f"{stage}: {duration(seconds)}, {text}")


def stopping_line(stage: str) -> str:
    """What a person should know while a stage saves."""
    return f"{stage}: saving, Ctrl-C again to kill"


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 document``, ``1,200 documents``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """A length of time for a person: ``4.2 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float) -> str:
    """A length of time as progress lines write it: ``0m07s``, ``12m03s``, ``3h05m``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 100 else f"{minutes // 60}h{minutes % 60:02d}m"
