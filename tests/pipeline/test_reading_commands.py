"""Commands that show what there is: ls, logs, env, resume, ui."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys  # registers the toy stages

from pipeline.cli import main
from pipeline.commands import COMMANDS
from pipeline.executing.locks import FileLock
from pipeline.store import Store
from stages import STAGES
from stages.objectives import LossEntry

RECIPE = """\
name: counting
stages:
  count: {uses: count, steps: 3}
  broken: {uses: misbehave, how: stage error}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a recipe of toy stages of which the second fails."""
    assert toys.Count
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def ran(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["run", "recipe.yaml"]) == 1
    capsys.readouterr()
    return folder


def test_every_stage_and_loss_is_listed_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, names in (("stages", STAGES), ("losses", LossEntry.model_fields)):
        assert main(["ls", kind, "--json"]) == 0
        listed = json.loads(capsys.readouterr().out)[kind]
        assert set(listed) == {name for name in names if not name.startswith("source-")}
        real = [name for name in listed if STAGES.get(name, "stages.").startswith("stages.")]
        assert all(len(listed[name]) > 10 for name in real), listed
    assert main(["ls", "initializers"]) == 0
    assert "omp" in capsys.readouterr().out


def test_recipes_and_runs_are_listed(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ran / "recipes").mkdir()
    (ran / "recipes" / "a.yaml").write_text("# Carry one thing to another. And more.\nname: a\n")
    assert main(["ls", "recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipes"] == {"recipes/a.yaml": "Carry one thing to another"}
    assert main(["ls", "runs"]) == 0
    assert "counting" in capsys.readouterr().out


def test_an_empty_list_says_so_on_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "runs"]) == 0
    assert capsys.readouterr().err == "there are no runs here\n"


def test_the_log_of_the_newest_and_of_an_earlier_attempt(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "recipe.yaml"]) == 1
    capsys.readouterr()
    assert main(["logs", "counting", "broken"]) == 0
    newest = capsys.readouterr().out
    assert "chatter 29\n" in newest
    assert "error: the tokenizer has 3 ids too many; use another\n" in newest
    assert main(["logs", "counting", "broken", "--attempt", "1"]) == 0
    assert "chatter 0\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["countin", "count"], "is called 'countin' (did you mean 'counting'?)"),
        (["counting", "cuont"], "has no stage called 'cuont' (did you mean 'count'?)"),
        (["counting", "count", "--attempt", "7"], "stage 'count' has no attempt 7; there are 1"),
        (["counting", "count", "--rank", "3"], "attempt 1 of stage 'count' has no log of rank 3"),
    ],
)
def test_a_log_that_is_not_there(ran: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["logs", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_followed_log_ends_with_its_stage(ran: Path) -> None:
    (entry,) = Store(ran / "runs" / "store").root.glob("count/*")
    log = entry / "attempts" / "1" / "log.txt"
    with FileLock(entry / "stage.lock").acquire():
        follower = subprocess.Popen(
            [sys.executable, "-c", "import sys, toys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))",
             "logs", "counting", "count", "-f"],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": _path()},
        )  # fmt: skip
        while "3/3" not in follower.stdout.readline():
            pass
        with log.open("a") as file:
            file.write("written later\nwithout an end")
        assert follower.stdout.readline() == "written later\n"
        time.sleep(0.1)
        assert follower.poll() is None, "the stage is still at work"
    assert follower.communicate(timeout=30)[0] == "without an end"
    assert follower.returncode == 0


def _path() -> str:
    return f"{Path(__file__).parent}:{Path(__file__).parents[2]}"


def test_a_run_is_resumed_by_its_name_alone(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ran / "recipe.yaml").unlink()
    assert main(["resume", "counting", "--until", "count"]) == 0
    out = capsys.readouterr().out
    assert "going on with counting from runs/counting/recipe.resolved.yaml" in out
    assert main(["resume", "other"]) == 2
    assert "no run in runs is called 'other'" in capsys.readouterr().err


def test_the_description_of_the_installation_has_no_secrets(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:sesame@tracking:5000/x")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("TORCH_API_TOKEN", "sesame")
    assert main(["env", "--json"]) == 0
    text = capsys.readouterr().out
    facts = json.loads(text)
    assert facts["tracking"] == "http://tracking:5000/x"
    assert facts["environment"]["NCCL_DEBUG"] == "INFO"
    assert "torch" in facts["versions"]
    assert "sesame" not in text
    assert main(["env"]) == 0
    assert "sesame" not in capsys.readouterr().out


def test_the_pages_are_started_on_this_machine_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["ui", "--print", "--port", "7000"]) == 0
    assert "--host 127.0.0.1 --port 7000" in capsys.readouterr().out
    assert main(["ui"]) == 1
    assert "nothing has been tracked yet" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:sesame@tracking:5000")
    assert main(["ui"]) == 0
    assert capsys.readouterr().out == "the metrics are on a server; open http://tracking:5000\n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    assert "--on-code-change" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_a_command_and_its_option(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(
        capsys.readouterr().out
        + '\ncomplete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); '
        + "$(complete -p pipeline | sed 's/.*-F \\([^ ]*\\).*/\\1/'); printf '%s\\n' \"${COMPREPLY[@]}\"; }\n"
        + "complete_words pipeline stat\ncomplete_words pipeline run --on-c\n"
    )
    shown = subprocess.run(["bash", str(script)], capture_output=True, text=True, timeout=30)
    assert shown.stdout.split() == ["status", "--on-code-change"]
