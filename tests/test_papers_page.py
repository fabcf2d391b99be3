"""docs/papers.md has every loss, initializer and stage once, with code that is there and the recipes that use it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.reading.loading import load_recipe
from pipeline.views.listing import listing
from stages import STAGES

REPOSITORY = Path(__file__).parents[1]
RECIPES = [path for path in sorted(REPOSITORY.glob("recipes/*.yaml")) if path.stem != "reference"]
ROW = re.compile(r"^\| `(?P<name>[\w-]+)` \| (?P<cells>.*) \|$", flags=re.M)

Uses = Callable[[Any], set[str]]


def _losses(stage: Any) -> set[str]:
    losses = stage.config.losses if stage.uses == "distill" else ()
    return {name for each in losses for name in each.model_fields_set}


def _initializers(stage: Any) -> set[str]:
    chains = (stage.config.input, stage.config.output or ()) if stage.uses == "init" else ()
    return {each.method for chain in chains for each in chain}


def _stages(stage: Any) -> set[str]:
    return {stage.uses}


@pytest.fixture(scope="module")
def recipes() -> dict[str, list[Any]]:
    return {path.stem: list(load_recipe(path).stages.values()) for path in RECIPES}


def _listed(kind: str, runs: Path) -> list[str]:
    """What ``pipeline ls`` shows, without the toys that other tests add to the stages."""
    return [name for name in listing(kind, runs) if STAGES.get(name, "stages.").startswith("stages.")]


def _table(heading: str) -> list[tuple[str, list[str]]]:
    """(name, other cells) of every row below a heading."""
    page = (REPOSITORY / "docs" / "papers.md").read_text(encoding="utf-8")
    _, _, below = page.partition(f"## {heading}\n")
    return [(row["name"], row["cells"].split(" | ")) for row in ROW.finditer(below.split("\n## ")[0])]


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("Losses of `distill`", "losses"), ("Initializers of `init`", "initializers"), ("Stages", "stages")],
)
def test_every_name_is_there_once(heading, kind, tmp_path):
    assert sorted(name for name, _ in _table(heading)) == sorted(_listed(kind, tmp_path))


@pytest.mark.parametrize(
    ("heading", "uses"),
    [("Losses of `distill`", _losses), ("Initializers of `init`", _initializers), ("Stages", _stages)],
)
def test_the_recipes_beside_a_name_are_those_that_use_it(heading, uses: Uses, recipes: Mapping[str, list[Any]]):
    users: dict[str, set[str]] = defaultdict(set)
    for recipe, stages in recipes.items():
        for name in {name for stage in stages for name in uses(stage)}:
            users[name].add(recipe)
    for name, cells in _table(heading):
        shown = set(recipes) if cells[-1] == "all" else set(re.findall(r"\[([\w-]+)\]", cells[-1]))
        assert shown == users[name], name


def test_the_code_beside_a_method_is_there():
    page = (REPOSITORY / "docs" / "papers.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:alignment|losses|stages)/[\w./]*)`", page)
    assert len(named) > 60
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


def test_the_reference_has_every_name(tmp_path):
    reference = (REPOSITORY / "recipes" / "reference.yaml").read_text(encoding="utf-8")
    for kind in ("losses", "initializers", "stages"):
        assert [name for name in _listed(kind, tmp_path) if not re.search(rf"\b{name}\b", reference)] == []
