"""What a person sees while a run is at work."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import pytest
import toys
from rich.console import Console
from terminal import Screen, TerminalProcess
from toys import plan_of, planned

from pipeline.cli import main
from pipeline.estimates import Estimate
from pipeline.plan import Plan
from pipeline.store import Store
from pipeline.views.display import MODES, Lines
from pipeline.views.live import LiveView, chosen, open_view
from pipeline.views.plain import PLAIN_SECONDS, STILL_SECONDS, PlainView
from pipeline.views.progress import Follower, StageProgress

RECIPE = """\
name: counting
stages:
  count: {uses: count, steps: 4000, seconds: 0.05}
  say: {uses: say, text: "hello"}
"""
COMMAND = [sys.executable, "-c", "import sys, toys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"]
AT_WORK = re.compile(r"count: step \d+/4000")
"""On a busy machine a view may miss any single step."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert toys.Count
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    paths = [Path(toys.__file__).parent, Path(toys.__file__).parents[2]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://db")
    return tmp_path


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    store = Store(tmp_path / "store")
    say = planned(store, "say", "say", {"text": "x"})
    return plan_of(
        tmp_path, planned(store, "count", "count", {"steps": 4}), say, planned(store, "table", "table", {}, [say])
    )


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def plain(plan: Plan, clock: Clock, *, quiet: bool = False) -> tuple[PlainView, io.StringIO]:
    file = io.StringIO()
    follower = Follower(plan, {"say": Estimate(90.0, 1)}, now=clock)
    return PlainView(follower, file, quiet=quiet, now=clock), file


def test_plain_lines_of_progress_come_now_and_then_with_the_time_that_remains(plan: Plan) -> None:
    clock = Clock()
    view, file = plain(plan, clock)
    view.line("count: attempt 1")
    for step in range(1, 101):
        view.progress("count", f"step {step}/100")
        clock.now += 1
    assert PLAIN_SECONDS == 10
    assert file.getvalue().splitlines() == [
        "count: attempt 1",
        "count: step 1/100",
        *(f"count: step {step}/100  ETA {(100 - step) // 60}m{(100 - step) % 60:02d}s" for step in range(11, 100, 10)),
        "count: step 100/100",
    ]


def test_what_is_no_counting_is_shown_at_once_and_stages_do_not_hide_each_other(plan: Plan) -> None:
    view, file = plain(plan, Clock())
    for stage, text in [
        ("count", "step 1/9"),
        ("count", "step 2/9"),
        ("count", "warning: 3 of 9 are lost"),
        ("count", "saved"),
        ("say", "step 1/9  loss 2  ETA 3m10s"),
    ]:
        view.progress(stage, text)
    shown = ["count: step 1/9", "count: warning: 3 of 9 are lost", "count: saved", "say: step 1/9  loss 2  ETA 3m10s"]
    assert file.getvalue().splitlines() == shown


def test_a_stage_that_says_nothing_new_is_shown_to_live(plan: Plan) -> None:
    view, file = plain(plan, Clock())
    view.still("count", 75.0, "starting")
    view.still("say", 20.0, "starting")
    assert file.getvalue() == "count: 1 min 15 s, starting\nsay: 20.0 s, starting  ETA 1m10s by earlier runs\n"


def test_slow_steps_are_shown_once_each(plan: Plan) -> None:
    """As the runner speaks: every step, and every ten seconds that a stage is at work without a new one."""
    clock = Clock()
    view, file = plain(plan, clock)
    for step in range(1, 5):
        view.progress("count", f"step {step}/40")
        clock.now += 10
        view.still("count", 12.0 * step - 2, f"step {step}/40")
        clock.now += 2
    assert [line.partition("  ")[0] for line in file.getvalue().splitlines()] == [
        f"count: step {step}/40" for step in range(1, 5)
    ]


def test_a_step_that_was_left_out_is_shown_when_nothing_follows_and_then_once_a_minute(plan: Plan) -> None:
    clock = Clock()
    view, file = plain(plan, clock)
    view.progress("count", "step 1/40")
    clock.now += 4
    view.progress("count", "step 2/40")
    for second in range(14, 150, 10):
        clock.now = 1000 + second
        view.still("count", second, "step 2/40")
    assert (PLAIN_SECONDS, STILL_SECONDS) == (10, 60)
    assert [line.partition("  ")[0] for line in file.getvalue().splitlines()] == [
        "count: step 1/40",
        *(f"count: {taken}, step 2/40" for taken in ("14.0 s", "1 min 14 s", "2 min 14 s")),
    ]


def test_after_ctrl_c_the_picture_says_what_another_one_does(plan: Plan) -> None:
    view, _ = live(plan, Clock())
    assert picture(view)[-1] == "0 of 3 stages done  0.0 s  Ctrl-C saves and stops"
    view.stopping("count")
    assert picture(view)[-1] == "0 of 3 stages done  0.0 s  saving, Ctrl-C again kills"


def test_quiet_shows_warnings_alone(plan: Plan) -> None:
    view, file = plain(plan, Clock(), quiet=True)
    view.line("count: attempt 1")
    view.progress("count", "step 1/9")
    view.still("count", 10.0, "step 1/9")
    view.progress("count", "warning: ids differ")
    assert file.getvalue() == "count: warning: ids differ\n"


def test_without_a_view_everything_is_a_line() -> None:
    lines: list[str] = []
    display = Lines(lines.append)
    display.line("count: done")
    display.progress("count", "step 1/2")
    display.still("count", 61.0, "step 1/2")
    assert lines == ["count: done", "count: step 1/2", "count: 1 min 01 s, step 1/2"]


def test_the_view_is_chosen_by_what_it_is_shown_on(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    kinds = {mode: type(open_view(mode, plan, {}, verbose=False, file=Terminal())) for mode in MODES}
    assert kinds == {"auto": LiveView, "live": LiveView, "plain": PlainView, "quiet": PlainView}
    assert isinstance(open_view("auto", plan, {}, verbose=False, file=io.StringIO()), PlainView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_view("auto", plan, {}, verbose=False, file=Terminal()), PlainView)


def picture(view: LiveView, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, record=True, force_terminal=True)
    console.print(view.picture())
    return [line.rstrip() for line in console.export_text().splitlines()]


def live(plan: Plan, clock: Clock, height: int = 24) -> tuple[LiveView, Follower]:
    follower = Follower(plan, {"say": Estimate(90.0, 1)}, now=clock)
    console = Console(file=io.StringIO(), width=80, height=height, force_terminal=True)
    return LiveView(follower, console, now=clock), follower


def test_the_picture_has_every_stage_with_what_is_known_of_it(plan: Plan) -> None:
    clock = Clock()
    view, follower = live(plan, clock)
    follower.stages["count"].state, follower.stages["count"].seconds = "finished", 12.0
    running = follower.stages["say"]
    running.state, running.started, running.loss, running.speed = "running", clock.now, 1.8312, 41_000.0
    for step in (0, 100):
        running.line = f"step {step}/400"
        running.pace.update(running.line, clock.now)
        view.progress("say", running.line)
        clock.now += 25
    assert picture(view) == [
        "✓ count done in 12.0 s",
        "▶ say   ━━━━━─────────────── 50.0 s  25%  loss 1.831  41,000 tok/s  ETA 2m30s",
        "· table waits for say",
        "1 of 3 stages done  50.0 s  Ctrl-C saves and stops",
        "  say: step 0/400",
        "  say: step 100/400",
    ]


def test_without_a_share_the_stage_speaks_for_itself(plan: Plan) -> None:
    clock = Clock()
    view, follower = live(plan, clock)
    running = follower.stages["count"]
    running.state, running.started, running.line = "running", clock.now - 5, "[bold]not markup[/bold]"
    assert picture(view)[0] == "▶ count 5.0 s  [bold]not markup[/bold]"
    follower.stages["table"].state = "left"
    follower.stages["say"].state = "failed"
    assert picture(view)[1:3] == ["✗ say   failed", "  table not selected"]
    follower.stages["say"].state = "retrying"
    assert picture(view)[1] == "↻ say   failed, is tried again soon"


@pytest.mark.parametrize(("width", "height"), [(80, 10), (30, 8), (12, 24)])
def test_the_picture_fits_the_terminal(tmp_path: Path, width: int, height: int) -> None:
    store = Store(tmp_path / "store")
    stages = [planned(store, f"a-stage-with-a-long-name-{i}", "say", {"text": str(i)}) for i in range(200)]
    clock = Clock()
    view, follower = live(plan_of(tmp_path, *stages), clock, height)
    follower.stages["a-stage-with-a-long-name-150"].state = "running"
    for i in range(9):
        view.progress("a-stage-with-a-long-name-150", f"a line that is longer than any terminal is wide {i} " * 9)
    rows = picture(view, width, height)
    assert len(rows) < height
    assert max(map(len, rows)) <= width
    assert sum(row.startswith("▶") for row in rows) == 1


def test_where_there_is_no_room_the_most_telling_stages_are_shown() -> None:
    states = ["finished"] * 5 + ["failed", "running"] + ["waiting"] * 5
    stages = [StageProgress(str(number), state) for number, state in enumerate(states)]
    assert [stage.name for stage in chosen(stages, 4)[0]] == ["5", "6", "7", "8"]
    assert [stage.name for stage in chosen(stages, 9)[0]] == ["3", "4", "5", "6", "7", "8", "9", "10", "11"]
    assert chosen(stages, 9)[1] == 3
    assert chosen(stages, 12) == (stages, 0)


def test_a_run_on_a_terminal_survives_resizing_and_ctrl_c_and_leaves_it_as_it_was(folder: Path) -> None:
    terminal = TerminalProcess([*COMMAND, "run", "recipe.yaml"], dict(os.environ), width=100, height=24)
    terminal.read_until(lambda shown: AT_WORK.search(shown.output) is not None)
    screen = terminal.screen()
    assert not screen.cursor
    assert any(row.startswith("▶ count") for row in screen.rows)
    assert "· say" in [row[:5] for row in screen.rows]
    terminal.resize(60, 12)
    seen = len(terminal.output)
    terminal.read_until(lambda shown: AT_WORK.search(shown.output, seen) is not None)
    narrow = Screen(60, 12)
    narrow.feed(terminal.output[seen:].rpartition("\x1b[2K\x1b[1A")[2])
    assert max(map(len, narrow.rows)) <= 60
    terminal.type("\x03")
    assert terminal.finish() == 75
    screen = terminal.screen()
    assert screen.cursor
    assert terminal.after == terminal.before
    left = [row for row in screen.rows if row]
    assert not any(row.startswith(("▶", "·")) or "Ctrl-C saves" in row for row in left)
    assert "count: saving, Ctrl-C again to kill" in left
    assert left[-2].startswith("stage 'count' was interrupted; it goes on from step ")


def test_lines_in_a_pipe_show_library_output_only_when_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.yaml").write_text("name: chatter\nstages:\n  broken: {uses: misbehave, how: stage error}\n")
    assert main(["run", "recipe.yaml"]) == 1
    assert "chatter" not in capsys.readouterr().out.replace("chatter:", "")
    assert main(["run", "recipe.yaml", "-v"]) == 1
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.startswith("broken | chatter")] == [
        f"broken | chatter {number}" for number in range(30)
    ]
    assert main(["run", "recipe.yaml", "--progress", "quiet"]) == 1
    assert "broken: attempt" not in capsys.readouterr().out
