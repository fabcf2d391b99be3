"""The command that a stopped or failed run prints: it goes on, asks for the same, and does nothing twice."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import forked_stages
import pytest
import toys
from pydantic import field_validator
from toys import plan_of, planned

from pipeline.cli import main
from pipeline.errors import EXIT_INTERRUPTED, StageFailed
from pipeline.executing.execution import Outstanding
from pipeline.runner import execute
from pipeline.store import Entry, Store
from stages import STAGES
from stages.stage import Input, StageConfig

RECIPE = """\
name: counting
stages:
  first: {uses: say, text: one}
  count: {uses: count, steps: 40}
  flaky: {uses: flaky, failures: 1, how: stage error}
  last: {uses: say, text: last}
"""
DEADLINE_SECONDS = 60


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a recipe and a ``pipeline`` that knows the toys, first on PATH."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    program = tmp_path / "bin" / "pipeline"
    program.parent.mkdir()
    code = "import sys, toys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-c", code])} "$@"\n')
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    paths = [Path(toys.__file__).parent, Path(toys.__file__).parents[2]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://db")
    return tmp_path


@pytest.fixture
def _forked() -> Iterator[None]:
    with forked_stages.forked_stages():
        yield


def entry(folder: Path, stage: str) -> Entry:
    place = (folder / "results" / "counting" / "stages" / stage).resolve()
    return Entry(place, json.loads((place / "DONE.json").read_text())["key"])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def printed_command(text: str) -> str:
    """What follows the last ``with:``."""
    command = text.strip().rpartition(" with: ")[2].splitlines()[0]
    assert command.startswith("pipeline ")
    return command


def test_the_printed_command_pasted_into_a_shell_ends_at_up_to_date(folder: Path) -> None:
    made = ["run", "recipe.yaml", "--runs", "results", "--until", "count", "--until", "first"]
    subprocess.run(["pipeline", *made], check=True, capture_output=True, timeout=DEADLINE_SECONDS)
    first, count = entry(folder, "first"), entry(folder, "count")
    wanted = ["--set", "count.seconds=0.05", "--set", "flaky.how='no output'", "--force", "first", "--force", "count"]
    ways = ["--keep-going", "--progress", "plain", "--verbose"]
    stopped = subprocess.Popen(
        ["pipeline", *made, *wanted, *ways], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until((count.work / "ckpt" / "step-3" / "COMPLETE.json").exists)
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate(timeout=DEADLINE_SECONDS)
    assert stopped.returncode == EXIT_INTERRUPTED
    command = printed_command(errors)
    words = ["pipeline", *made[:4], *wanted[:4], "--until", "count", "--until", "first", "--force", "count", *ways]
    assert shlex.split(command) == words
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert ended.returncode == 0, ended.stderr
    assert "count: attempt 3, going on from step " in ended.stdout
    assert [attempt.state for attempt in first.attempts()] == ["finished", "finished"]
    assert [attempt.state for attempt in count.attempts()] == ["finished", "interrupted", "finished"]
    assert count.done().attempt == 3, "the forced attempt was made, though the old result looked up to date"
    assert (count.out / "text.txt").read_text() == str(sum(range(41)))
    checked = ["pipeline", "plan", *made[1:], "--check"]
    assert subprocess.run(checked, capture_output=True, timeout=DEADLINE_SECONDS).returncode == 0


@pytest.mark.usefixtures("_forked")
@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ("", ""),
        ("--jobs 2 -v --progress quiet --keep-going", "--jobs 2 --keep-going --progress quiet --verbose"),
        ("--force-all", "--force flaky --force last"),
        ("--force flaky --restart flaky", "--force flaky"),
        ("--restart last --restart first", "--restart last"),
        ("--on-code-change rerun --only flaky", "--only flaky --on-code-change rerun"),
        ("--set count.steps=3 --set 'flaky.how=stage error'", "--set count.steps=3 --set 'flaky.how=stage error'"),
    ],
)
def test_what_the_command_repeats_and_what_it_leaves_out(
    folder: Path, capsys: pytest.CaptureFixture[str], asked: str, left: str
) -> None:
    assert main(["run", "recipe.yaml", *shlex.split(asked)]) == 1
    expected = ["pipeline", "run", "recipe.yaml", *shlex.split(left)]
    assert shlex.split(printed_command(capsys.readouterr().err)) == expected


@pytest.mark.usefixtures("_forked")
def test_resume_goes_on_with_resume(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "recipe.yaml", "--until", "first"]) == 0
    assert main(["resume", "counting", "--runs", "runs", "--force-all", "--jobs", "1", "-v"]) == 1
    expected = "pipeline resume counting --force flaky --force last --verbose"
    assert printed_command(capsys.readouterr().err) == expected


@pytest.mark.usefixtures("_forked")
def test_force_all_stays_until_something_was_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "recipe.yaml", "--only", "flaky", "--force-all"]) == 1
    assert printed_command(capsys.readouterr().err) == "pipeline run recipe.yaml --only flaky --force-all"


@pytest.mark.usefixtures("_forked")
def test_a_sweep_repeats_its_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "sweep recipe.yaml --set count.steps=1,2 --jobs 2 --progress plain"
    assert main(words.split()) == 1
    assert printed_command(capsys.readouterr().err) == f"pipeline {words}"


@pytest.mark.usefixtures("_forked")
def test_what_else_was_done_before_the_end_counts(tmp_path: Path) -> None:
    """The command is put together when all stages have ended, not when the first one failed."""
    store = Store(tmp_path / "store")
    flaky = planned(store, "flaky", "flaky", {"failures": 1}, forced=True)
    others = [planned(store, text, "say", {"text": text}, forced=True) for text in ("a", "b")]
    outstanding: list[Outstanding] = []

    def command(left: Outstanding) -> str:
        outstanding.append(left)
        return "THE COMMAND"

    plan = plan_of(tmp_path, flaky, *others)
    with pytest.raises(StageFailed, match="try again from step 1 with: THE COMMAND"):
        execute(plan, out=lambda line: None, command=command, jobs=2, keep_going=True)
    assert outstanding == [Outstanding(force=("flaky",), restart=())]


class Untimely:
    """A stage whose options take the signal that they name to be checked: it arrives while a run is being planned."""

    VERSION = 1
    inputs: Mapping[str, Input] = {}
    output = toys.TextArtifact

    class Config(StageConfig):
        number: int
        other: int = 0

        @field_validator("number")
        @classmethod
        def _send(cls, number: int) -> int:
            os.kill(os.getpid(), number)
            return number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("words", ["run recipe.yaml --jobs 2", "sweep recipe.yaml --set only.other=1,2 --jobs 2"])
def test_preemption_while_a_run_is_planned_asks_to_be_run_again(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    words: str,
) -> None:
    monkeypatch.setitem(STAGES, "untimely", f"{__name__}:Untimely")
    (folder / "recipe.yaml").write_text(
        f"name: untimely\nstages:\n  only: {{uses: untimely, number: {number.value}}}\n"
    )
    before = signal.getsignal(number)
    assert main(words.split()) == EXIT_INTERRUPTED
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err.strip() == (
        f"stopped by {number.name} while no stage was at work; nothing was lost. Go on with: pipeline {words}"
    )
