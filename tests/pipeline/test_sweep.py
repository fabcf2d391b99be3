from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import toys  # registers the toy stages

from pipeline.cli import main
from pipeline.errors import RecipeError
from pipeline.sweep import LONGEST_NAME, alternatives, combinations, run_names

RECIPE = """\
name: words
stages:
  hello: {uses: say, text: hello}
  world: {uses: say, text: world}
  joined: {uses: join, needs: [hello, world], separator: " "}
  lengths: {uses: table, needs: [joined]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert toys.Say
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    # By its whole path: MLflow remembers a connection by its address, and the current directory changes between tests.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=1,2", ["a.b=1", "a.b=2"]),
        ("a=[1,2],[3]", ["a=[1,2]", "a=[3]"]),
        ("a={x: 1, y: [2, 3]}", ["a={x: 1, y: [2, 3]}"]),
        ('a="x,y",z', ['a="x,y"', "a=z"]),
        ("a=b=c,d", ["a=b=c", "a=d"]),
        ("a=", ["a="]),
    ],
)
def test_alternatives_are_separated_by_commas_outside_brackets(override: str, expected: list[str]) -> None:
    assert alternatives(override) == expected


def test_an_empty_alternative_is_refused() -> None:
    with pytest.raises(RecipeError, match="--set a=1,,2: there is nothing before or after a comma"):
        alternatives("a=1,,2")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hello.text=hi,hi"], "--set hello.text: hi is given more than once: it would be the same run"),
        (["hello.text=a,b", "hello.text=c"], "--set hello.text is given twice"),
        (["name=a,b"], "--set name: one value; the runs of a sweep are named after what differs"),
        (["experiment=a,b"], "--set experiment: one value"),
        (
            ["resources.hello.deepspeed.wandb.api_key=abc,def"],
            "api_key: one value; a secret would become part of the n",
        ),
        (["hello.text=hf_abcdefghijklmnopqrst,b"], "--set hello.text: one value; a secret would become"),
        (["hello,world"], "--set hello,world: expected PATH=VALUE,VALUE"),
        ([f"{stage}=" + ",".join(map(str, range(100))) for stage in "abcdef"], "that would be 1,000,000,000,000 runs"),
    ],
)
def test_what_cannot_be_a_sweep_is_refused_at_once(folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        combinations(folder / "recipe.yaml", overrides)
    assert message in str(refused.value)
    assert "hf_" not in str(refused.value)


def test_the_problems_of_all_combinations_are_told_also_when_the_first_is_wrong(folder: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        combinations(folder / "recipe.yaml", ["lengths.title=[1],a,[2]"])
    assert [problem.rpartition(", ")[2] for problem in refused.value.problems] == ["not [1]", "not [2]"]
    (folder / "recipe.yaml").write_text(RECIPE.replace("name: words", "name: [words]"))
    with pytest.raises(RecipeError, match=":1: name: should be a valid string"):
        combinations(folder / "recipe.yaml", ["hello.text=hi,bye"])


def test_names_say_what_differs_and_differ() -> None:
    assert run_names("r", [["stages.a.steps=1", "b.rate=0.1"], ["stages.a.steps=2", "b.rate=0.1"]]) == [
        "r--steps-1--rate-0_1",
        "r--steps-2--rate-0_1",
    ]
    assert run_names("r", [["a.steps=1", "b.steps=2"]]) == ["r--a_steps-1--b_steps-2"]
    alike = run_names("r", [["x=[a,b]"], ["x=[a b]"], ["x=" + "y" * 500]])
    assert len(set(alike)) == 3
    assert max(map(len, alike)) <= LONGEST_NAME


def test_a_sweep_makes_every_combination_and_what_they_share_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["sweep", "recipe.yaml", "--set", "hello.text=hi,bye", "--set", "joined.separator=_,+"]
    assert main([*sweep, "--dry-run"]) == 0
    # world once, hello twice, joined and lengths four times
    assert "11 results to make in 4 runs" in capsys.readouterr().out
    assert main(sweep) == 0
    made = sorted((folder / f"runs/{name}/stages/joined/out/text.txt").read_text() for name in _runs(folder))
    assert made == ["bye+world", "bye_world", "hi+world", "hi_world"]
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0] == "all 4 runs are up to date; to put them side by side:"
    assert [word for word in last[1].split() if word in _runs(folder)] == last[1].split()[-4:]
    assert len(list((folder / "runs/store/say").iterdir())) == 3
    capsys.readouterr()
    assert main(sweep) == 0
    assert "0 results to make in 4 runs" in capsys.readouterr().out


def _runs(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("runs/*/recipe.resolved.yaml"))


def test_the_runs_of_a_sweep_are_one_experiment_and_can_be_resumed_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "recipe.yaml", "--set", "hello.text=hi,bye"]) == 0
    capsys.readouterr()
    assert main(["resume", "words--text-hi"]) == 0
    assert "everything is up to date" in capsys.readouterr().out
    with sqlite3.connect(folder / "mlflow.db") as database:
        experiments = {name for (name,) in database.execute("select name from experiments")} - {"Default"}
        names = {name for (name,) in database.execute("select name from runs")}
    assert experiments == {"words"}
    assert {"words--text-hi", "words--text-bye"} <= names


def test_nothing_runs_before_every_combination_is_right(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["sweep", "recipe.yaml", "--set", "hello.text=hi,bye", "--set", "lengths.title=a,[1],[2]"]
    assert main(sweep) == 2
    assert capsys.readouterr().err.splitlines() == [
        "--set: stages.lengths.title: should be a valid string, not [1]",
        "--set: stages.lengths.title: should be a valid string, not [2]",
    ]
    assert not (folder / "runs").exists()


def test_without_alternatives_there_is_nothing_to_sweep(folder: Path) -> None:
    with pytest.raises(RecipeError, match="nothing to sweep over"):
        combinations(folder / "recipe.yaml", ["hello.text=hi"])


def test_a_failed_run_stops_the_sweep_unless_it_is_to_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.yaml").write_text("name: bad\nstages:\n  one: {uses: misbehave, how: stage error}\n")
    sweep = ["sweep", "recipe.yaml", "--set", "one.how=stage error,exception"]
    assert main(sweep) == 1
    assert len(_runs(folder)) == 1
    assert capsys.readouterr().err.endswith("1 of 2 runs were not begun\n")
    assert main([*sweep, "--keep-going"]) == 1
    assert len(_runs(folder)) == 2
    assert "2 of 2 runs failed: bad--how-stage_error, bad--how-exception" in capsys.readouterr().err


def test_a_path_may_begin_with_a_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe.yaml", "--set", "hello.text=hi", "--json"]) == 0
    short = json.loads(capsys.readouterr().out)
    assert main(["plan", "recipe.yaml", "--set", "stages.hello.text=hi", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == short
    assert main(["plan", "recipe.yaml", "--set", "hallo.text=hi"]) == 2
