from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path

import pytest
import toys  # registers the toy stages

from pipeline.cli import main
from pipeline.views.comparison import Comparison
from pipeline.views.comparison_text import comparison_page, show_comparison

RECIPE = """\
name: {name}
stages:
  base: {{uses: say, text: base}}
  hello: {{uses: say, text: {text}}}
  lengths: {{uses: table, needs: [hello]}}
  evaluate: {{uses: evaluation, needs: [base, hello]}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two finished runs that differ in one text."""
    assert toys.Evaluation
    directory = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        _environment(patch)
        for name, text in (("long", "good morning"), ("short", "hi")):
            Path(f"{name}.yaml").write_text(RECIPE.format(name=name, text=text))
            assert main(["run", f"{name}.yaml"]) == 0
    return directory


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The current directory, with a copy of the finished runs."""
    copy = tmp_path / "folder"
    shutil.copytree(finished, copy, symlinks=True)
    monkeypatch.chdir(copy)
    _environment(monkeypatch)
    capsys.readouterr()
    return copy


def _environment(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PYTHONPATH", str(Path(__file__).parent))
    patch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")


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


def training(*losses: float) -> dict[str, object]:
    points = [[step, loss] for step, loss in enumerate(losses, start=1)]
    return {"steps": len(losses), "points": len(losses), "not_finite": 0, "measures": {"loss": points}}


def compared(**curves: dict[str, object]) -> Comparison:
    return Comparison(("a", "b", "c"), recipe={}, states={}, metrics={}, evaluations={}, curves=curves)


def test_curves_of_the_same_stage_are_drawn_in_one_frame() -> None:
    shown = io.StringIO()
    same, other = training(4.0, 2.0), training(4.0, 3.0, 1.5)
    show_comparison(
        compared(distill={"a": same, "b": other, "c": same}, shared={"a": same, "b": same}), shown, everything=False
    )
    lines = shown.getvalue().splitlines()
    assert "distill: loss by step" in lines
    assert lines[-2:] == ["  a a, c", "  b b"], "runs that share a result share a line"
    assert not any("shared" in line for line in lines), "where nothing differs nothing is drawn"
    assert [line.partition("│")[0].strip() for line in lines if "│" in line][::11] == ["4", "1.5"]


def test_a_page_of_runs_that_only_trained(tmp_path: Path) -> None:
    comparison_page(compared(distill={"a": training(4.0, 2.0), "b": training(4.0, 3.0)}), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "distill: loss" in page
    assert "a/distill" in page
    assert "b/distill" in page


def test_curves_are_read_from_what_training_stages_published(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, loss in (("long", 3.0), ("short", math.nan)):
        (folder / "runs" / run / "stages" / "hello" / "out" / "training.jsonl").write_text(
            "".join(json.dumps({"step": step, "loss": loss / step}) + "\n" for step in (1, 2))
        )
    assert main(["compare", "long", "short", "--json"]) == 0
    curves = json.loads(capsys.readouterr().out)["curves"]
    assert curves["hello"]["long"]["measures"] == {"loss": [[1, 3.0], [2, 1.5]]}
    assert curves["hello"]["short"] == {"steps": 2, "points": 2, "not_finite": 2, "measures": {}}


def test_a_page_of_several_evaluations(folder: Path) -> None:
    for name in ("one", "two"):
        recipe = RECIPE.format(name=name, text=name * 2) + "  again: {uses: evaluation, needs: [hello]}\n"
        (folder / f"{name}.yaml").write_text(recipe)
        assert main(["run", f"{name}.yaml"]) == 0
    assert main(["compare", "one", "two", "--html", "both.html"]) == 0
    page = (folder / "both.html").read_text()
    assert "evaluate: Lengths" in page
    assert "again: Lengths" in page


def test_many_runs_stand_below_each_other() -> None:
    names = tuple(f"a-name-of-a-run--steps-{number}" for number in range(10))
    several = Comparison(names, {"stages.x.steps": dict.fromkeys(names, 7)}, {}, {}, {}, {})
    shown = io.StringIO()
    show_comparison(several, shown, everything=False)
    assert shown.getvalue().splitlines()[1:3] == ["stages.x.steps", "  a-name-of-a-run--steps-0  7"]


@pytest.mark.parametrize("place", ["nowhere/page.html", "."])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["compare", "long", "short", "--html", place])
    assert refused.value.code == 2
    assert f"argument --html: {place}" in capsys.readouterr().err


def test_a_damaged_recipe_of_a_run_is_no_fault_of_ours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "runs" / "long" / "recipe.resolved.yaml").write_text("{")
    for command in (["resume", "long"], ["compare", "long", "short"], ["logs", "long", "hello"]):
        assert main(command) == 2
        assert "recipe.resolved.yaml:1: not valid YAML" in capsys.readouterr().err


def test_a_page_needs_a_finished_evaluation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.yaml").write_text(RECIPE.format(name=name, text=name))
        assert main(["run", f"{name}.yaml", "--until", "hello"]) == 0
    assert main(["compare", "a", "b", "--html", "x.html"]) == 2
    assert "--html shows evaluations and training curves, and no run has finished" in capsys.readouterr().err
    assert not (folder / "x.html").exists()
