"""What a person sees while a run is at work: a live view on a terminal, plain lines elsewhere.

Both show milestones (a stage began, is done, waits), warnings and notes; they differ in how they show progress. What
libraries write is in the logs, and on the screen only if it is asked for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pipeline.estimates import Estimate
from pipeline.plan import Plan
from pipeline.views.display import Display, Mode, duration, stopping_line
from pipeline.views.plain import Following, PlainView
from pipeline.views.progress import Follower, StageProgress, is_remark, printable

_LAST_LINES = 4
_LEAST_STAGE_ROWS = 3
_BAR_WIDTH = 20
_LONGEST_NAME = 28
_SYMBOLS = {
    "waiting": ("·", "dim"),
    "left": (" ", "dim"),
    "running": ("▶", "bold cyan"),
    "finished": ("✓", "green"),
    "cached": ("✓", "dim green"),
    "failed": ("✗", "bold red"),
    "interrupted": ("‖", "yellow"),
    "retrying": ("↻", "yellow"),
}


class View(Display, Protocol):
    """What shows a run. A context manager: entered before the run, left after it, however it ended."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_view(mode: Mode, plan: Plan, expected: Mapping[str, Estimate], *, verbose: bool, file: IO[str]) -> View:
    """The view of a run on ``file``.

    Args:
        mode: ``auto`` is ``live`` on a terminal that can move its cursor, else ``plain``.
        plan: what will be done.
        expected: how long stages take, by earlier runs.
        verbose: show also what libraries write to the logs.
        file: usually stdout, which the live view takes over while it is shown.
    """
    console = Console(file=file, highlight=False)
    if mode == "auto":
        drawable = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
        mode = "live" if drawable else "plain"
    follower = Follower(plan, expected)
    if mode == "live":
        return LiveView(follower, console, verbose=verbose)
    return PlainView(follower, file, verbose=verbose, quiet=mode == "quiet")


class LiveView:
    """A picture of the run that is drawn over and over at the lower end of the terminal, and milestones above it."""

    def __init__(
        self, follower: Follower, console: Console, *, verbose: bool = False, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._follower, self._console, self._verbose, self._now = follower, console, verbose, now
        self._began = now()
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._key = "Ctrl-C saves and stops"
        # transient: what stays on the terminal afterwards are the milestones; no thread of its own: ours draws it
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._following = Following(self._look)

    def __enter__(self) -> LiveView:
        self._live.start()
        self._following.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._following.stop()
        self._live.stop()

    def line(self, text: str) -> None:
        """Stays on the terminal, above the picture."""
        self._print(text)

    def progress(self, stage: str, text: str) -> None:
        """Warnings and notes stay; the rest is among the last lines of the picture."""
        shown = f"{stage}: {printable(text)}"
        if is_remark(text):
            self._print(shown)
        else:
            self._lines.append(shown)

    def stopping(self, stage: str) -> None:
        """Stays on the terminal, and the picture says what another Ctrl-C does."""
        self._key = "saving, Ctrl-C again kills"
        self.line(stopping_line(stage))

    def still(self, stage: str, seconds: float, text: str) -> None:
        """The picture shows that."""

    def _look(self) -> None:
        for stage, line in self._follower.poll():
            if self._verbose:
                self._print(f"{stage} | {line}")
        self._live.update(self.picture(), refresh=True)

    def _print(self, text: str) -> None:
        self._console.print(Text(text))

    def picture(self) -> Group:
        """The stages, how many of them are done, and the last lines of progress; never higher than the terminal."""
        height = self._console.size.height
        lines = list(self._lines)
        del lines[: max(0, len(lines) - max(0, height - _LEAST_STAGE_ROWS - 2))]
        stages, hidden = chosen(list(self._follower.stages.values()), max(_LEAST_STAGE_ROWS, height - len(lines) - 2))
        width = min(_LONGEST_NAME, max((len(stage.name) for stage in stages), default=0))
        rows = [self._row(stage, width) for stage in stages]
        last = [_one_row(f"  {line}", style="dim") for line in lines]
        return Group(*rows, self._footer(hidden), *last)

    def _row(self, stage: StageProgress, width: int) -> Text:
        symbol, style = _SYMBOLS[stage.state]
        name = stage.name if len(stage.name) <= width else f"{stage.name[: width - 1]}…"
        row = _one_row(f"{symbol} {name:<{width}} ", style=style)
        return row.append_text(self._at_work(stage) if stage.state == "running" else Text(self._what(stage)))

    def _what(self, stage: StageProgress) -> str:
        """In words what became of a stage that is not at work."""
        took = "" if stage.seconds is None else f" in {duration(stage.seconds)}"
        words = {
            "waiting": self._follower.waits_for(stage.name),
            "left": "not selected",
            "finished": f"done{took}",
            "cached": "cached",
            "failed": f"failed{took}",
            "interrupted": "interrupted",
            "retrying": "failed, is tried again soon",
        }
        return words[stage.state]

    def _at_work(self, stage: StageProgress) -> Text:
        """Bar, share, loss, speed, time that remains, as far as they are known; the stage's own words if nothing is."""
        now, share = self._follower.now(), stage.share
        facts = [duration(now - stage.started)]
        text = Text()
        if share is not None:
            filled = round(share * _BAR_WIDTH)
            text.append("━" * filled, style="cyan").append("─" * (_BAR_WIDTH - filled), style="dim").append(" ")
            facts.append(f"{share:.0%}")
        if stage.loss is not None:
            facts.append(f"loss {stage.loss:.4g}")
        if stage.speed is not None:
            facts.append(f"{stage.speed:,.0f} tok/s")
        if eta := stage.eta(now):
            facts.append(f"ETA {eta}")
        if share is None and stage.line:
            facts.append(stage.line)
        return text.append("  ".join(facts))

    def _footer(self, hidden: int) -> Text:
        stages = [stage for stage in self._follower.stages.values() if stage.state != "left"]
        done = sum(stage.is_done for stage in stages)
        more = f", {hidden} not shown" if hidden else ""
        elapsed = duration(self._now() - self._began)
        return _one_row(f"{done} of {len(stages)} stages done{more}  {elapsed}  {self._key}", style="bold")


def _one_row(text: str, style: str) -> Text:
    """What is too long for the terminal is cut."""
    return Text("", no_wrap=True, overflow="ellipsis").append(text, style=style)


def chosen(stages: Sequence[StageProgress], rows: int) -> tuple[list[StageProgress], int]:
    """The stages to show where there is room for so many rows, in their order, and how many are left out.

    Those at work or failed come first, then the next to run, then those that were done last.
    """
    if len(stages) <= rows:
        return list(stages), 0
    first = [stage for stage in stages if stage.state in ("running", "failed", "interrupted", "retrying")]
    coming = [stage for stage in stages if stage.state == "waiting"]
    done = [stage for stage in reversed(stages) if stage.is_done]
    wanted = {stage.name for stage in [*first, *coming, *done][:rows]}
    shown = [stage for stage in stages if stage.name in wanted]
    return shown, len(stages) - len(shown)
