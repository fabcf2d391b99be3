from __future__ import annotations

import json
from pathlib import Path

import pytest
import toys  # registers the toy stages

from pipeline.cli import main

RECIPE = """\
name: {name}
stages:
  base: {{uses: say, text: base}}
  hello: {{uses: say, text: {text}}}
  lengths: {{uses: table, needs: [hello]}}
  evaluate: {{uses: evaluation, needs: [base, hello]}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The current directory, with two finished runs that differ in one text."""
    assert toys.Evaluation
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    for name, text in (("long", "good morning"), ("short", "hi")):
        (tmp_path / f"{name}.yaml").write_text(RECIPE.format(name=name, text=text))
        assert main(["run", f"{name}.yaml"]) == 0
    capsys.readouterr()
    return tmp_path


def test_what_differs_is_shown_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "long", "short"]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["stages.hello.text", '"good', 'morning"', '"hi"'] in lines
    assert ["hello.length", "12", "2"] in lines
    assert ["lengths.length", "12", "2"] in lines
    assert not any(line[:1] == ["base.length"] for line in lines), "it is the same in both"
    assert ["base", "4"] in lines, "a model that both share stands once"
    assert ["long/hello", "12"] in lines
    assert ["short/hello", "*2"] in lines, "the best of the column is marked"
    assert main(["compare", "long", "short", "--all"]) == 0
    assert "base.length" in capsys.readouterr().out


def test_the_same_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "short", "long", "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)
    assert comparison["runs"] == ["short", "long"]
    assert comparison["recipe"] == {"stages.hello.text": {"short": "hi", "long": "good morning"}}
    assert comparison["metrics"]["hello.length"] == {"short": 2, "long": 12}
    assert not any(name.startswith("evaluate.") for name in comparison["metrics"]), "the evaluation has its own place"
    (table,) = comparison["evaluations"]["evaluate"]["sections"][0]["tables"]
    assert {row: measures["bytes"]["value"] for row, measures in table["rows"].items()} == {
        "base": 4.0,
        "short/hello": 2.0,
        "long/hello": 12.0,
    }


def test_a_page_of_the_evaluations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "long", "short", "--html", "both.html"]) == 0
    page = (folder / "both.html").read_text()
    assert "long/hello" in page
    assert "good morning" in page, "what the recipes differ in"
    assert capsys.readouterr().err == "as a page: both.html\n"


def test_a_run_that_is_not_finished_is_compared_as_far_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "third.yaml").write_text(RECIPE.format(name="third", text="other"))
    assert main(["run", "third.yaml", "--until", "hello"]) == 0
    capsys.readouterr()
    assert main(["compare", "long", "third"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["evaluate", "fresh", "missing"] in lines
    assert ["hello.length", "12", "5"] in lines
    assert ["lengths.length", "12", "-"] in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["long"], "compare needs two different runs at least, not long"),
        (["long", "long"], "compare needs two different runs at least"),
        (["long", "shrot"], "no run in runs is called 'shrot' (did you mean 'short'?)"),
    ],
)
def test_runs_that_cannot_be_compared(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["compare", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_page_needs_a_finished_evaluation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.yaml").write_text(RECIPE.format(name=name, text=name))
        assert main(["run", f"{name}.yaml", "--until", "hello"]) == 0
    assert main(["compare", "a", "b", "--html", "x.html"]) == 2
    assert "--html shows the one evaluation that the runs share; here: none is finished" in capsys.readouterr().err
    assert not (folder / "x.html").exists()
