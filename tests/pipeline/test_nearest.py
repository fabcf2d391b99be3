"""Every name that is misspelt is answered with the one that was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import toys

from pipeline.cli import main
from pipeline.nearest import did_you_mean, unknown_name
from pipeline.reading.other_names import OTHER_NAMES, called_here
from pipeline.recipe import Outline, Resources, StageHeader
from pipeline.reference.schema import Section, section_of
from stages import STAGES, load_stage

RECIPE = """\
name: words
models: {teacher: {model: ./a.txt}, student: {model: ./a.txt, tokenizer: ./a.txt}}
data: {train: [{path: ./a.txt}], eval: [{path: ./a.txt}]}
stages:
  align: {uses: align}
  init: {uses: init, needs: [align]}
  distill: {uses: distill, needs: [init], losses: [{alm: {}}], steps: 1, batch_windows: 1, window_tokens: 8}
  evaluate: {uses: evaluate, needs: [init, distill], initial: init}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert toys.Count
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "a.txt").write_text("some words")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quickstart.yaml").write_text(RECIPE)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "recipe.resolved.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


OVERRIDES = {
    "distil.steps=100": "--set distil: no section and no stage is called 'distil' (did you mean 'distill'?)",
    "distil=3": "(did you mean 'distill'?)",
    "stages.distil.steps=100": "--set stages.distil: no stage is called 'distil' (did you mean 'distill'?)",
    "stgaes.distill.steps=100": "(did you mean 'stages'?)",
    "resuorces.distill.gpus=1": "(did you mean 'resources'?)",
    "resources.distil.gpus=1": "(did you mean 'distill'?)",
    "resources.distill.gpu=1": "(did you mean 'gpus'?)",
    "distill.stpes=100": "--set: stages.distill.stpes: unknown key (did you mean 'steps'?)",
    "distill.uses=distil": "(did you mean 'distill'?)",
    "distill.losses=[amll]": "(did you mean 'alm'?)",
    "distill.losses[0].almm.weight=2": "(did you mean 'alm'?)",
    "distill.losses=[{ALM: {}}]": "--set: stages.distill.losses[0].ALM: unknown key (did you mean 'alm'?)",
    "distill.losses=[{alm: 5}]": "losses[0].alm: should be a mapping, such as {weight: 1.0}, not 5",
    "distill.losses=alm": "stages.distill.losses: should be a list, such as [alm], not 'alm'",
    "distill.lr=1": "--set: stages.distill.lr: unknown key (called 'learning_rate' here)",
    "distill.LR=1": "(called 'learning_rate' here)",
    "distill.epochs=1": "(called 'steps' here: optimiser steps, not passes over the text)",
    "distill.batch_size=1": "(called 'batch_windows' here: windows of window_tokens tokens a step, on all processes",
    "distill.gradient-accumulation-steps=1": "(called 'micro_batch_windows' here",
    "distill.max_seq_length=1": "(called 'window_tokens' here)",
    "distill.zzz=1": "and 31 more, all in docs/reference.md)",
    "models.teacher.model_name_or_path=x": "(called 'model' here)",
    "data.train[0].text_field=x": "(called 'text' here)",
    "resources.distill.nproc_per_node=2": "(called 'processes' here)",
    "init.depends_on=[align]": "(called 'needs' here)",
    "init.needs=align": "stages.init.needs: should be a list, such as [align], not 'align'",
    "models.teacher=./a.txt": "models.teacher: should be a mapping, such as {model: ./a.txt}, not './a.txt'",
    "data.train=./a.txt": "data.train: should be a list, such as [{path: ./a.txt}], not './a.txt'",
    "distill.combine=gradmg": "(did you mean 'gradmag'?)",
    "init.input.method=opm": "(did you mean 'omp'?)",
    "init.needs=[algin]": "(did you mean 'align'?)",
    "data.trian=1": "(did you mean 'train'?)",
    "data.train[0].pth=x": "(did you mean 'path'?)",
    "models.techer.model=x": "(did you mean 'teacher'?)",
    "seeed=3": "(did you mean 'seed'?)",
    "nothing_like_it=3": "models, data, stages, resources, align, init, distill, evaluate)",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override(folder: Path, capsys: pytest.CaptureFixture[str], override: str) -> None:
    assert main(["show", "recipe.yaml", "--set", override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert OVERRIDES[override] in line


IN_THE_FILE = {
    ("stages:", "stagse:"): ["recipe.yaml:4: stagse: unknown key (did you mean 'stages'?)", "stages: required"],
    ("data:", "dta:"): ["recipe.yaml:3: dta: unknown key (did you mean 'data'?)"],
    ("steps:", "stesp:"): ["(did you mean 'steps'?)"],
    ("uses: init", "uses: innit"): ["unknown stage 'innit' (did you mean 'init'?)"],
    ("initial: init", "inital: init"): ["(did you mean 'initial'?)"],
}


@pytest.mark.parametrize("change", IN_THE_FILE)
def test_a_key_of_the_file(folder: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str]) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace(*change, 1))
    assert main(["show", "recipe.yaml"]) == 2
    message = capsys.readouterr().err
    assert all(expected in message for expected in IN_THE_FILE[change]), message


NAMES = {
    "show recipee.yaml": "recipee.yaml: there is no such recipe file (did you mean 'recipe.yaml'?)",
    "show quickstart": "(did you mean 'recipes/quickstart.yaml'?)",
    "show qiuckstart.yaml": "(did you mean 'recipes/quickstart.yaml'?)",
    "plan recipe.yaml --only distil": "(did you mean 'distill'?)",
    "plan recipe.yaml --from algin": "(did you mean 'align'?)",
    "status fisrt": "(did you mean 'first'?)",
    "resume frist": "(did you mean 'first'?)",
    "logs frist init": "(did you mean 'first'?)",
    "track sync frist": "(did you mean 'first'?)",
    "compare frist first": "(did you mean 'first'?)",
    "export frist init out": "(did you mean 'first'?)",
}


@pytest.mark.parametrize("words", NAMES)
def test_a_recipe_a_stage_or_a_run(folder: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert main(words.split()) == 2
    assert NAMES[words] in capsys.readouterr().err


WORDS = {
    "rnu recipe.yaml": "argument COMMAND: there is no 'rnu' (did you mean 'run'?)",
    "track synch": "(did you mean 'sync'?)",
    "graph recipe.yaml --form dot": "graph: error: unrecognized arguments: --form dot (did you mean '--format'?)",
    "run recipe.yaml --forec init": "(did you mean '--force'?)",
    "run recipe.yaml --jbos=2": "(did you mean '--jobs'?)",
    "graph recipe.yaml --format dott": "(did you mean 'dot'?)",
    "run recipe.yaml --progress lvie": "(did you mean 'live'?)",
    "run recipe.yaml --on-code-change wran": "(did you mean 'warn'?)",
    "ls stagse": "(did you mean 'stages'?)",
    "init x --use trasnfer": "(did you mean 'transfer'?)",
    "completion bsh": "(did you mean 'bash'?)",
    "ls nothing-like-it": "(known: stages, losses, initializers, recipes, runs)",
    "ls runs more": "unrecognized arguments: more",
}


@pytest.mark.parametrize("words", WORDS)
def test_a_word_of_the_command_line(capsys: pytest.CaptureFixture[str], words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    assert WORDS[words] in capsys.readouterr().err


def test_what_is_near_and_what_is_not() -> None:
    assert did_you_mean("wieght", ["height", "weight"]) == " (did you mean 'weight'?)"
    assert did_you_mean("warmup", ["steps", "losses"]) == ""
    assert unknown_name("x", []) == " (known: none)"
    assert did_you_mean("ALM", ["uld", "alm"]) == did_you_mean("alm", ["uld", "alm"]) == " (did you mean 'alm'?)"


def test_of_many_known_names_the_nearest_are_listed() -> None:
    few, many = [f"name{number}" for number in range(12)], [f"name{number}" for number in range(40)]
    assert unknown_name("xyz", few) == f" (known: {', '.join(few)})"
    answer = unknown_name("7", many, listed_in="the list")
    assert answer.startswith(" (known: name7, name"), "the nearest first"
    assert answer.endswith(" and 28 more, all in the list)")
    assert unknown_name("7", many).endswith(" and 28 more)")


def _keys(section: Section) -> set[str]:
    return {option.name for option in section.options}.union(
        *(_keys(inner) for option in section.options for inner in option.sections)
    )


def test_what_others_call_a_key_is_a_key_nowhere_it_is_answered() -> None:
    sections = [Outline, StageHeader, Resources, *(load_stage(kind).Config for kind in STAGES)]
    keys = set().union(*(_keys(section_of(model)) for model in sections))
    assert OTHER_NAMES.keys() <= keys
    others = [other for names in OTHER_NAMES.values() for other in names]
    assert len(set(others)) == len(others)
    assert called_here("lr", ["steps"]) == "", "this section has no such key"
