"""Every command in the documents works: commands that only read are run, the others are checked against --help."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import command_parser, main
from pipeline.commands import COMMANDS
from pipeline.reading.loading import load_recipe
from pipeline.recipe import Outline

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("recipes/**/*.md")])
TUTORIAL = REPOSITORY / "docs" / "tutorial.md"
RECIPES = sorted(REPOSITORY.glob("recipes/*.yaml"))
READ_ONLY = {"plan", "graph", "validate", "show", "status", "slurm", "ls", "env", "ui", "completion", "clean"}
TAKE_RUNS = {"plan", "run", "sweep", "status", "audit", "ls", "clean", "track"}
RUN_HERE = {"audit", "card", "mixture", "track"}  # trains nothing
NEED_A_RUN = {"export", "verify"}  # only understood


def _shown(path: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def _commands() -> list[tuple[str, str]]:
    """(document, command) of every shown command, the first document that shows it."""
    found = []
    for path in DOCUMENTS:
        if path != TUTORIAL:
            found += [(path.name, command) for command in _shown(path)]
    for path in RECIPES:
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [(path.name, line.lstrip("# ").split("  ")[0]) for line in lines if line.startswith("#   pipeline ")]
    first = {command: document for document, command in reversed(found)}
    return [(document, command) for command, document in first.items()]


def test_the_documents_show_commands():
    assert len(_commands()) >= 8
    assert len(RECIPES) >= 1


@pytest.mark.demo
@pytest.mark.parametrize(("document", "command"), _commands(), ids=lambda value: value)
def test_a_shown_command_works(document, command, monkeypatch, capsys, tmp_path):
    words = shlex.split(command)
    monkeypatch.chdir(REPOSITORY)
    if words[0] == "make":
        # A dry run fails for a target that does not exist; the targets themselves are what runs this test.
        subprocess.run(["make", "--dry-run", *words[1:]], check=True, capture_output=True)
        return
    assert words[0] == "pipeline", f"{document}: no test knows how to run {command!r}"
    if words[1] in NEED_A_RUN:
        command_parser().parse_args(words[1:])
        return
    if words[1] == "init":
        (tmp_path / "recipes").symlink_to(REPOSITORY / "recipes")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.stdin", io.StringIO())
    elif words[1] == "demo":
        monkeypatch.chdir(tmp_path)
        words.append("--write-only")
    elif words[1] in {"run", "sweep"}:
        words.append("--dry-run")
    else:
        assert words[1] in READ_ONLY | RUN_HERE
    if words[1] != "graph":
        words += ["--runs", str(tmp_path)] if words[1] in TAKE_RUNS else []
    assert main(words[1:]) == 0, capsys.readouterr().err


@pytest.mark.demo
def test_the_tutorial_works_in_the_order_in_which_it_is_read(monkeypatch, capsys, tmp_path):
    """All but what trains, and what needs its results: of these the command line alone."""
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    done = []
    for command in _shown(TUTORIAL):
        program, *words = shlex.split(command)
        if program == "make":
            subprocess.run(["make", "--dry-run", *words], cwd=REPOSITORY, check=True, capture_output=True)
        elif program == "cat":
            subprocess.run(command, shell=True, check=True)
        elif program == "pipeline":
            arguments = command_parser().parse_args(words)
            done.append(words[0])
            if words[0] in {"init", "plan", "run"}:
                words += ["--dry-run"] if words[0] == "run" else []
                assert main(words) == 0, capsys.readouterr().err
            elif words[0] == "audit":
                assert Path(arguments.recipe).is_file()
        else:
            assert program in {"git", "cd", "."}, f"no test knows how to run {command!r}"
    assert done == ["init", "audit", "plan", "run", "run", "status", "run", "compare", "export"]


# The others are held by tests/pipeline/test_recipes.py.
@pytest.mark.parametrize(
    "path", [path for path in RECIPES if "hub:" not in path.read_text()], ids=lambda path: path.name
)
def test_every_recipe_is_valid_here(path, capsys):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
    assert main(["validate", str(path)]) == 0, capsys.readouterr().err


def _examples() -> list[tuple[str, str]]:
    """(document, YAML) of every shown part of a recipe."""
    return [
        (path.name, block)
        for path in DOCUMENTS
        for block in re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S)
    ]


@pytest.mark.parametrize(("document", "example"), _examples(), ids=lambda value: value[:60])
def test_a_shown_part_of_a_recipe_fits_into_the_quickstart(document, example, tmp_path):
    recipe = yaml.safe_load((REPOSITORY / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    shown = yaml.safe_load(example)
    if not shown.keys() <= Outline.model_fields.keys():
        shown = {"stages": {"distill": shown}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(_merged(recipe, shown)), encoding="utf-8")
    for name, stage in load_recipe(path).stages.items():
        handed_on = type(stage.config).model_validate(stage.config.model_dump(mode="json"))
        assert handed_on == stage.config, f"{name} runs with other options than the recipe gives"


def _merged(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _merged(below.get(key), value) for key, value in above.items()}


def test_relative_links_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_every_command_has_its_place_in_the_documents():
    pages = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert [command for command in COMMANDS if f"pipeline {command}" not in pages] == []


def test_the_architecture_names_what_is_there():
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:alignment|losses|stages|pipeline|tests)/[\w./]*)`", page)
    assert len(named) > 20
    assert [path for path in named if not (REPOSITORY / path).exists()] == []
