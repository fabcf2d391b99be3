"""Every method of init: registered once, described on the page, and the same after a round trip through JSON."""

from __future__ import annotations

import importlib
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from stages.hypernetwork.config import HypernetConfig
from stages.init import InitConfig
from stages.initialisation.methods import METHODS
from stages.initialisation.refining import REFINERS
from stages.initializers import Entry
from stages.initializers.refiners import RefinerEntry

PAGE = (Path(__file__).parents[2] / "docs" / "initializers.md").read_text(encoding="utf-8")
RECIPE_PAGE = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text(encoding="utf-8")

REQUIRED: dict[str, dict[str, Any]] = {
    "trans_tok": {"parallel": "pairs.tsv"},
    "tokenadapt": {"encoder": "encoder"},
    "wechsel": {"source_vectors": "a.vec", "target_vectors": "b.vec"},
    "ofa": {"vectors": "words.vec"},
}
"""What a method cannot be without."""


def options_of(entry: Any) -> dict[str, type[BaseModel]]:
    """Name -> options class, of all members of a union that ``method`` discriminates."""
    members = typing.get_args(typing.get_args(entry)[0])
    return {typing.get_args(member.model_fields["method"].annotation)[0]: member for member in members}


METHOD_OPTIONS, REFINER_OPTIONS = options_of(Entry), options_of(RefinerEntry)


def test_every_method_that_a_recipe_may_name_is_there_and_no_other():
    assert METHOD_OPTIONS.keys() == METHODS.keys()
    assert REFINER_OPTIONS.keys() == REFINERS.keys()
    for place in (*METHODS.values(), *REFINERS.values()):
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("name", [*METHOD_OPTIONS, *REFINER_OPTIONS])
def test_every_option_is_explained(name):
    options = (METHOD_OPTIONS | REFINER_OPTIONS)[name]
    section = PAGE.split(f"**`{name}`**", 1)[1].split("\n\n")[0]
    for option in options.model_fields.keys() - {"method"}:
        assert f"`{option}`" in section, f"{name}.{option} is not on the page"


@pytest.mark.parametrize("name", METHOD_OPTIONS)
def test_a_resolved_chain_means_the_same_as_the_recipe(name):
    config = InitConfig(input={"method": name, **REQUIRED.get(name, {})})
    assert InitConfig.model_validate(config.model_dump(mode="json")) == config
    assert InitConfig.model_validate(config.model_dump(mode="json", exclude_none=True)) == config


@pytest.mark.parametrize("option", [name for name in InitConfig.model_fields if name != "seed"])
def test_the_recipe_page_names_every_option_of_init(option):
    section = RECIPE_PAGE.split("### `init`", 1)[1].split("\n### ")[0]
    assert f"`{option}`" in section


@pytest.mark.parametrize("option", HypernetConfig.model_fields)
def test_the_page_names_every_option_of_the_hypernet_stage(option):
    section = PAGE.split("## The hypernet stage", 1)[1]
    if HypernetConfig.model_fields[option].json_schema_extra != {"keyed": False} and option != "seed":
        assert f"`{option}`" in section
