"""``pipeline status --watch``: on a terminal a picture that is drawn anew, elsewhere a block for each change."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys
from terminal import TerminalProcess

from pipeline.cli import main
from pipeline.views.watching import Look, watch

COMMAND = [sys.executable, "-c", "import sys, toys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"]
RECIPE = "name: counting\nstages:\n  count: {uses: count, steps: 60, seconds: 0.05}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    paths = [Path(toys.__file__).parent, Path(toys.__file__).parents[2]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://db")
    return tmp_path


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_is_watched_from_before_its_beginning_to_its_end(folder: Path) -> None:
    terminal = TerminalProcess([*COMMAND, "status", "recipe.yaml", "--watch", "0.1"], dict(os.environ))
    piped = start("status", "recipe.yaml", "--watch", "0.1")
    terminal.read_until(lambda shown: "every 0.1 s, Ctrl-C ends" in shown.output)
    assert "missing" in terminal.output
    run = start("run", "recipe.yaml")
    terminal.read_until(lambda shown: len({word for word in shown.output.split() if word.endswith("/60")}) > 2)
    assert "running" in terminal.output
    assert not terminal.screen().cursor
    assert run.wait(60) == 0
    assert terminal.finish() == 0
    screen = terminal.screen()
    assert screen.cursor
    assert terminal.after == terminal.before
    rows = [row.split() for row in screen.rows if row]
    assert [row[:2] for row in rows] == [["counting:"], ["stage", "state"], ["count", "fresh"]], "drawn once, no footer"
    blocks = piped.communicate(timeout=60)[0].split("counting:\n")
    assert piped.returncode == 0
    assert "missing" in blocks[1]
    assert "fresh" in blocks[-1]
    assert len(set(blocks)) > 3, "those in between say how far it is"
    assert "Ctrl-C" not in "".join(blocks)


def test_ctrl_c_ends_it_in_silence(folder: Path) -> None:
    terminal = TerminalProcess([*COMMAND, "status", "recipe.yaml", "--watch"], dict(os.environ))
    terminal.read_until(lambda shown: "every 2.0 s, Ctrl-C ends" in shown.output)
    terminal.type("\x03")
    assert terminal.finish() == 0
    assert "Traceback" not in terminal.output
    assert terminal.screen().cursor
    piped = start("status", "--watch", "0.1")
    assert piped.stdout.readline().startswith("20")
    assert piped.stdout.readline() == "there are no runs in runs\n"
    time.sleep(0.3)
    piped.send_signal(signal.SIGINT)
    assert (piped.stdout.read(), piped.stderr.read()) == ("\n", ""), "nothing had changed"
    assert piped.wait(60) == 0


def test_it_ends_when_what_was_at_work_no_longer_is_and_not_before(capsys: pytest.CaptureFixture[str]) -> None:
    states = iter([("a", "idle"), ("a", "idle"), ("b", "at work"), ("b", "at work"), ("c", "idle"), ("d", "at work")])
    file = io.StringIO()
    watch(lambda: Look(*next(states)), 0.001, file)
    assert file.getvalue().split("\n")[1::3] == ["a", "b", "c"]
    assert next(states)[0] == "d"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--watch", "counting"], "'counting' is no number of seconds; name the run before --watch"),
        (["--watch", "0"], "more than 0 seconds, not 0"),
        (["--watch", "--json"], "not allowed with argument --watch"),
    ],
)
def test_wrong_options(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(SystemExit):
        main(["status", *words])
    assert message in capsys.readouterr().err
