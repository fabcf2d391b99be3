"""Looking at something again and again: drawn anew on a terminal, printed elsewhere when it has changed."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import IO, Literal, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from pipeline.views.display import duration

LOG_WIDTH = 140
"""Characters of a line that no terminal limits."""


class Look(NamedTuple):
    """What there was at one moment.

    Attributes:
        picture: for a person.
        state: ``idle`` is neither at work nor done: something may still begin.
    """

    picture: RenderableType
    state: Literal["idle", "at work", "done"]


def watch(look: Callable[[], Look], seconds: float, file: IO[str]) -> None:
    """Look every so many seconds until all is done, or what was at work is no longer, or Ctrl-C.

    Raises:
        PipelineError: what ``look`` raises.
    """
    console = Console(file=file, highlight=False)
    drawn = console.is_terminal and not console.is_dumb_terminal
    try:
        if drawn:
            _draw(look, seconds, console)
        else:
            _print_changes(look, seconds, file)
    except KeyboardInterrupt:
        return


def _draw(look: Callable[[], Look], seconds: float, console: Console) -> None:
    """The last picture stays on the terminal."""
    footer = Text(f"every {duration(seconds)}, Ctrl-C ends", style="dim", no_wrap=True, overflow="ellipsis")
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        seen = look()
        try:
            was_at_work = False
            while not _has_ended(seen, was_at_work):
                was_at_work = seen.state == "at work"
                live.update(Group(seen.picture, footer), refresh=True)
                time.sleep(seconds)
                seen = look()
        finally:
            live.update(seen.picture, refresh=True)


def _print_changes(look: Callable[[], Look], seconds: float, file: IO[str]) -> None:
    shown, was_at_work = None, False
    while True:
        seen = look()
        text = _text(seen.picture)
        if text != shown:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}", file=file, flush=True)
        if _has_ended(seen, was_at_work):
            return
        shown, was_at_work = text, seen.state == "at work"
        time.sleep(seconds)


def _has_ended(seen: Look, was_at_work: bool) -> bool:
    return seen.state == "done" or (was_at_work and seen.state == "idle")


def _text(picture: RenderableType) -> str:
    file = io.StringIO()
    Console(file=file, width=LOG_WIDTH).print(picture)
    return file.getvalue()
