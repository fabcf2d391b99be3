from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.cli import main
from pipeline.executing.locks import FileLock

RECIPE = """\
name: words
stages:
  one: {uses: source-documents, documents: [{path: ./a.txt}]}
  two: {uses: source-documents, documents: [{path: ./a.txt, weight: 2}]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with a recipe whose stages need neither torch nor other stages."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "a.txt").write_text("some words")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_imports_nothing_heavy_and_fits_a_screen():
    script = (
        "import sys; from pipeline.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted({'torch', 'transformers', 'mlflow', 'pydantic', 'omegaconf', 'rich'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(cli.__file__).parents[1]
    )
    *lines, imported = shown.stdout.splitlines()
    assert imported == ""
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_planning_imports_no_heavy_library(folder):
    script = (
        "import sys; from pipeline.cli import main\n"
        "main(['plan', 'recipe.yaml'])\n"
        "print(*sorted({'torch', 'transformers', 'mlflow', 'numpy'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )
    assert shown.stdout.splitlines()[-1] == ""
    assert shown.returncode == 0, shown.stderr


def test_a_run_from_nothing_to_up_to_date(folder):
    """One life of a run through the real command: plan, run, look, change, force."""
    assert command("plan", "recipe.yaml", "--check").returncode == 3

    first = command("run", "recipe.yaml")
    assert first.returncode == 0, first.stderr
    assert "2 of 2 stages were run" in first.stdout
    assert "MLflow run" in first.stdout
    assert "pipeline ui" in first.stdout
    assert json.loads((folder / "runs/words/stages/one/out/documents.jsonl").read_text())["text"] == "some words"

    again = command("run", "recipe.yaml")
    assert again.returncode == 0, again.stderr
    assert "everything is up to date" in again.stdout
    assert command("plan", "recipe.yaml", "--check").returncode == 0

    status = json.loads(command("status", "words", "--json").stdout)
    assert [(stage["name"], stage["state"]) for stage in status["runs"][0]["stages"]] == [
        ("one", "fresh"),
        ("two", "fresh"),
    ]
    assert status["runs"][0]["stages"][0]["seconds"] > 0

    before = (folder / "runs/words/stages/two/out").resolve()
    forced = command("run", "recipe.yaml", "--force", "two", MLFLOW_TRACKING_URI="nowhere://x")
    assert forced.returncode == 0, forced.stderr
    assert "1 of 2 stages were run" in forced.stdout
    assert "nowhere://x" in forced.stderr, "tracking failed, which was said and stopped nothing"
    assert (folder / "runs/words/stages/two/out").resolve() != before

    (folder / "a.txt").write_bytes(b"\xff\xff")
    failed = command("run", "recipe.yaml", MLFLOW_TRACKING_URI="nowhere://x")
    assert failed.returncode == 1
    assert "stage 'one' failed (attempt 1" in failed.stderr
    assert "pipeline run recipe.yaml" in failed.stderr


def test_a_run_makes_as_many_as_the_plan_said(folder, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    twins = ["--set", "stages.one.documents[0].weight=2"]
    assert main(["run", "recipe.yaml", *twins]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 stages to run" in shown
    assert "1 of 2 stages were run" in shown


def test_the_bare_command_shows_what_there_is(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("usage: pipeline")
    assert "    run       bring a recipe up to date" in shown.err


def test_a_second_run_is_refused(folder, capsys):
    with FileLock(folder / "runs" / "words" / "run.lock").acquire():
        assert main(["run", "recipe.yaml"]) == 4
    assert f"pid {os.getpid()}" in capsys.readouterr().err


def test_plan_for_people_and_programs_say_the_same(folder, capsys):
    assert main(["plan", "recipe.yaml", "--set", "stages.one.documents[0].weight=2"]) == 0
    table = capsys.readouterr().out
    assert "note: two is the same work as one, which is done once\n1 of 2 stages to run" in table
    assert main(["plan", "recipe.yaml", "--set", "stages.one.documents[0].weight=2", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["schema_version"] == 1
    assert [stage["name"] for stage in plan["stages"]] == ["one", "two"]
    assert plan["stages"][0]["key"] == plan["stages"][1]["key"], "the override made them equal"
    for stage in plan["stages"]:
        row = next(line for line in table.splitlines() if line.split()[:1] == [stage["name"]])
        assert row.split() == [stage["name"], stage["state"], stage["action"], stage["reason"], stage["key"][:12]]


def test_dry_run_is_plan(folder, capsys):
    assert main(["run", "recipe.yaml", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert main(["plan", "recipe.yaml"]) == 0
    assert capsys.readouterr().out == dry
    assert not (folder / "runs" / "words").exists()


def test_show_says_where_each_value_comes_from(folder, capsys):
    assert main(["show", "recipe.yaml", "--sources", "--set", "stages.one.documents[0].text=body"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows["stages.two.documents[0].weight"] == ["2.0", "recipe.yaml:4"]
    assert rows["stages.one.documents[0].text"] == ["body", "--set"]
    assert rows["stages.one.documents[0].weight"] == ["1.0", "default"]
    assert rows["seed"] == ["0", "default"]


def test_show_prints_a_recipe_that_can_be_used(folder, capsys):
    assert main(["show", "recipe.yaml"]) == 0
    (folder / "shown.yaml").write_text(capsys.readouterr().out)
    assert main(["plan", "recipe.yaml", "--json"]) == 0
    plan = capsys.readouterr().out
    assert main(["plan", "shown.yaml", "--json"]) == 0
    assert capsys.readouterr().out == plan


def test_graph_formats(folder, capsys):
    assert main(["graph", "recipe.yaml"]) == 0
    assert capsys.readouterr().out.split() == ["one", "source-documents", "two", "source-documents"]
    assert main(["graph", "recipe.yaml", "--format", "mermaid"]) == 0
    assert capsys.readouterr().out.startswith("graph TD")


def test_status_of_nothing_and_of_an_unknown_run(folder, capsys):
    assert main(["status"]) == 0
    assert "there are no runs in runs" in capsys.readouterr().out
    assert main(["status", "wrods"]) == 2
    assert "no recipe file is called 'wrods'" in capsys.readouterr().err
    assert main(["status", "recipe.yaml"]) == 0
    assert "missing" in capsys.readouterr().out


def test_unexpected_errors_leave_one_line_and_a_log(folder, capsys, monkeypatch):
    def broken(path, overrides):
        raise ZeroDivisionError("one by nothing")

    monkeypatch.setattr("pipeline.reading.loading.load_recipe", broken)
    assert main(["validate", "recipe.yaml"]) == 1
    message = capsys.readouterr().err
    assert "ZeroDivisionError: one by nothing" in message.splitlines()[0]
    log = Path(message.splitlines()[1].split()[1])
    assert "Traceback" in log.read_text()
    log.unlink()

    monkeypatch.setenv("TOKENFERRY_DEBUG", "1")
    assert main(["validate", "recipe.yaml"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_while_planning_is_clean(folder, capsys, monkeypatch):
    def interrupted(path, overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.reading.loading.load_recipe", interrupted)
    assert main(["plan", "recipe.yaml"]) == 130
    assert "Traceback" not in capsys.readouterr().err
