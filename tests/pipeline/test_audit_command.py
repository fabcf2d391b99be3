"""``pipeline audit`` as users type it: which stages it runs, what it prints, and how it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline import cli
from pipeline.audit import audit_recipe
from pipeline.cli import main
from pipeline.errors import RecipeError
from pipeline.executing.locks import FileLock

TEXT = "Some words, 東京 and 12345.\n\n\tdef add(left, right):\n\t\treturn left + right\n"
RECIPE = """\
name: small
seed: 3
models:
  teacher: {{model: {teacher}}}
  student: {{model: {teacher}, tokenizer: {target}}}
data:
  train: [{{path: ./a.txt, weight: 2}}, {{path: ./b.txt}}]
  eval: [{{path: ./missing.txt}}]
stages:
  align: {{uses: align}}
  init: {{uses: init, needs: [align]}}
"""


class Audited(NamedTuple):
    """A directory in which a recipe was audited once, and what the command printed."""

    folder: Path
    output: str


@pytest.fixture(scope="module")
def bare_model_dir(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> Path:
    """A model directory whose weights are gone."""
    directory = tiny_model_dir(tiny_tokenizer_dirs[0])
    (directory / "model.safetensors").unlink()
    return directory


def _write_recipe(folder: Path, teacher: Path, target: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.format(teacher=teacher, target=target))
    (folder / "a.txt").write_text(TEXT, encoding="utf-8")
    (folder / "b.txt").write_text("Another document.", encoding="utf-8")


@pytest.fixture(scope="module")
def audited(tmp_path_factory, bare_model_dir, tiny_tokenizer_dirs) -> Audited:
    """The recipe has no audit stage, and its teacher no weights."""
    folder = tmp_path_factory.mktemp("audited")
    _write_recipe(folder, bare_model_dir, tiny_tokenizer_dirs[1])
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "audit", "recipe.yaml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return Audited(folder, done.stdout)


@pytest.fixture
def folder(tmp_path, monkeypatch, bare_model_dir, tiny_tokenizer_dirs) -> Path:
    """The current directory, with the same recipe, of which nothing was run yet."""
    _write_recipe(tmp_path, bare_model_dir, tiny_tokenizer_dirs[1])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _change(folder: Path, old: str, new: str, name: str = "recipe.yaml") -> None:
    text = (folder / "recipe.yaml").read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def test_a_recipe_without_an_audit_is_audited_without_weights(audited):
    assert "Recommended objective" in audited.output
    page, numbers = (re.search(rf"^{name}: +(.+)$", audited.output, re.M)[1] for name in ("as a page", "as numbers"))
    assert (audited.folder / page).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    report = json.loads((audited.folder / numbers).read_text(encoding="utf-8"))
    assert report["schema_version"] == 1
    assert report["text_bytes"] == len(TEXT.encode()) + len("Another document.")
    assert not list(audited.folder.glob("runs/store/source-model/*")), "whole models are not wanted"
    assert not list(audited.folder.glob("mlruns")), "an audit is not tracked"


def test_the_second_time_it_is_printed_at_once(audited, monkeypatch, capsys):
    monkeypatch.chdir(audited.folder)
    assert main(["audit", "recipe.yaml"]) == 0
    assert capsys.readouterr().out == audited.output[audited.output.index("Audit: ") :]


def test_other_weights_change_nothing(audited, bare_model_dir, monkeypatch, capsys):
    monkeypatch.chdir(audited.folder)
    weights = bare_model_dir / "model.safetensors"
    weights.write_bytes(b"other weights")
    try:
        assert main(["audit", "recipe.yaml", "--json"]) == 0
    finally:
        weights.unlink()
    assert capsys.readouterr().err == "", "nothing ran"


def test_a_run_of_the_recipe_goes_on_beside_it_and_shares_the_result(audited, monkeypatch, capsys):
    monkeypatch.chdir(audited.folder)
    with FileLock(audited.folder / "runs" / "small" / "run.lock").acquire():
        assert main(["audit", "recipe.yaml"]) == 0
    assert not (audited.folder / "runs" / "small" / "recipe.yaml").exists()
    capsys.readouterr()

    _change(audited.folder, "stages:\n", "stages:\n  audit: {uses: audit}\n", name="with-audit.yaml")
    # The stages that want the weights are another matter.
    without_weights = audited.folder / "with-audit.yaml"
    without_weights.write_text(re.sub(r"  (align|init): .*\n", "", without_weights.read_text()))
    assert main(["plan", "with-audit.yaml", "--json"]) == 0
    (audit,) = (stage for stage in json.loads(capsys.readouterr().out)["stages"] if stage["name"] == "audit")
    assert (audit["state"], audit["reason"]) == ("fresh", "fresh (made by run small-audit)")
    assert main(["status"]) == 0
    assert "small-audit:" in capsys.readouterr().out


def test_another_weight_is_audited_anew_and_json_stands_alone_on_stdout(audited, monkeypatch, capsys):
    monkeypatch.chdir(audited.folder)
    assert main(["audit", "recipe.yaml", "--json", "--set", "data.train[0].weight=3"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert report["overall"]["bytes"] == 3 * len(TEXT.encode()) + len("Another document.")
    assert set(re.findall(r"^([\w/]+): attempt", shown.err, re.M)) == {"sources/train", "audit"}


def test_the_audit_of_the_recipe_is_used_whatever_it_is_called(folder):
    _change(folder, "stages:\n", "stages:\n  check: {uses: audit, batch_windows: 5}\n")
    recipe = audit_recipe(folder / "recipe.yaml", [])
    assert recipe.name == "small-audit"
    assert list(recipe.stages)[-1] == "check"
    assert recipe.stages["check"].config.batch_windows == 5
    assert set(recipe.resolved["stages"]) == {"check"}
    assert set(recipe.resolved["data"]) == {"train"}


def test_an_override_reaches_the_audit_that_the_recipe_does_not_have(folder):
    recipe = audit_recipe(folder / "recipe.yaml", ["stages.audit.window_tokens=512"])
    assert recipe.stages["audit"].config.window_tokens == 512
    with pytest.raises(RecipeError, match=r"no stage is called 'adit' \(did you mean 'audit'\?\)"):
        audit_recipe(folder / "recipe.yaml", ["stages.adit.window_tokens=512"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  teacher:", "  # teacher:", "models.teacher.model: required, but not given: it is input 'teacher' of stage"),
        ("  train:", "  # train:", "data.train: required, but not given: it is input 'documents' of stage 'audit'"),
        (", tokenizer:", "} #", "models.student.tokenizer: required, but not given"),
        ("init: {uses: init,", "audit: {uses: init,", "stages.audit: is no 'audit' stage, but 'audit' needs that name"),
        ("stages:\n", "stages:\n  a: {uses: audit}\n  b: {uses: audit}\n", "has several audits, a, b"),
    ],
    ids=["teacher", "train", "tokenizer", "name", "several"],
)
def test_a_recipe_that_cannot_be_audited_is_refused_with_one_message(folder, capsys, old, new, message):
    _change(folder, old, new)
    assert main(["audit", "recipe.yaml"]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""
    assert not (folder / "runs").exists()


def test_a_reference_that_leads_nowhere_is_refused_before_anything_runs(folder, capsys):
    assert main(["audit", "recipe.yaml", "--set", "models.student.tokenizer=./nowhere"]) == 2
    assert "models.student.tokenizer" in capsys.readouterr().err
    assert not (folder / "runs" / "store").exists()


def test_unreadable_text_fails_with_its_place_and_the_command_to_go_on_with(audited, monkeypatch, capsys):
    monkeypatch.chdir(audited.folder)
    (audited.folder / "c.txt").write_bytes(b"ab\xff")
    assert main(["audit", "recipe.yaml", "--set", "data.train[1].path=./c.txt"]) == 1
    error = capsys.readouterr().err
    assert "c.txt: not UTF-8: byte 0xff at offset 2" in error
    assert re.search(r"try again with: .*pipeline audit recipe\.yaml --set", error)


def test_one_problem_in_a_section_that_several_stages_read_is_said_once(folder):
    _change(folder, "{model: ", "{modle: ")
    with pytest.raises(RecipeError) as raised:
        audit_recipe(folder / "recipe.yaml", [])
    said = "models.teacher.modle: unknown key (did you mean 'model'?)"
    assert sum(said in problem for problem in raised.value.problems) == 1
