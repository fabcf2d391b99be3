"""Which option of which stage makes what anew: a table over all fields of all stages, drawn from their schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import shipped_keys
from pydantic import BaseModel

from pipeline.keys import keyed_params
from pipeline.reading.loading import load_recipe
from pipeline.reading.resources import Resources
from pipeline.recipe import Recipe
from stages import STAGES, load_stage
from stages.evaluation.suites.options import LangGameOptions, SuitesOptions
from stages.objectives import LossEntry
from stages.stage import StageConfig

TRAINING = {
    "activation_checkpointing", "attention", "checkpoint_every", "data_workers", "device_tflops", "keep_checkpoints",
    "log_every", "max_rollbacks", "micro_batch_windows", "packing",
}  # fmt: skip

NOT_KEYED = {
    "DistillConfig": TRAINING,
    "EvaluateConfig": {"batch_tokens"},
    "GenerateConfig": {"batch_documents"},
    "HypernetConfig": {"checkpoint_every", "keep_checkpoints", "log_every"},
    "HypernetOptions": {"batch_tokens"},
    "OmpOptions": {"memory_gib"},
    "OnPolicyOptions": {"batch", "guards"},
    "ScoreConfig": {"batch_tokens", "shard_bytes"},
    "StochasTokConfig": TRAINING,
}
"""All options that change how a stage runs and not what it computes. A wrong line here serves stale results: whoever
adds one says why it belongs here, in the review."""


def models() -> dict[str, type[BaseModel]]:
    """The configuration of every stage, and what is nested in them."""
    found: dict[str, type[BaseModel]] = {}

    def visit(annotation: Any) -> None:
        for part in get_args(annotation):
            visit(part)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            name = f"{annotation.__module__}.{annotation.__qualname__}"
            if name not in found:
                found[name] = annotation
                for field in annotation.model_fields.values():
                    visit(field.annotation)

    for stage in STAGES:
        if STAGES[stage].startswith("stages."):
            visit(load_stage(stage).Config)
    return found


def params(values: BaseModel) -> dict[str, Any]:
    return keyed_params(values, lambda place, text: f"content of {text}")


@pytest.mark.parametrize("model", models().values(), ids=models())
def test_a_field_is_part_of_the_key_unless_the_table_says_otherwise(model: type[BaseModel]) -> None:
    one = model.model_construct(**{name: f"one {name}" for name in model.model_fields})
    for name in model.model_fields:
        other = one.model_copy(update={name: f"another {name}"})
        changes_the_key = params(one) != params(other)
        assert changes_the_key == (name not in NOT_KEYED.get(model.__name__, ())), name


def test_every_line_of_the_table_is_a_field() -> None:
    fields = {model.__name__: set(model.model_fields) for model in models().values()}
    assert {name: sorted(wrong) for name, given in NOT_KEYED.items() if (wrong := given - fields[name])} == {}


def changes(config: BaseModel) -> Iterator[tuple[str, bool, Any]]:
    """Every field below ``config``, whether it is keyed, and ``config`` with another value there."""
    for name in type(config).model_fields:
        keyed = name not in NOT_KEYED.get(type(config).__name__, ())
        value = getattr(config, name)
        yield name, keyed, config.model_copy(update={name: "~ changed ~"})
        if isinstance(value, BaseModel):
            inner = [(path, below, changed) for path, below, changed in changes(value)]
        elif isinstance(value, list | tuple):
            inner = [
                (f"{index}.{path}", below, [*value[:index], changed, *value[index + 1 :]])
                for index, item in enumerate(value)
                if isinstance(item, BaseModel)
                for path, below, changed in changes(item)
            ]
        else:
            inner = []
        for path, below, changed in inner:
            yield f"{name}.{path}", keyed and below, config.model_copy(update={name: changed})


def with_all_that_follows(recipe: Recipe, stage: str) -> set[str]:
    following = {stage}
    for name, spec in recipe.stages.items():  # each comes after what it reads
        if following & set(spec.upstream):
            following.add(name)
    return following


@pytest.mark.parametrize("path", shipped_keys.paths(), ids=lambda path: path.name)
def test_a_change_of_one_option_makes_its_stage_anew_and_what_follows_and_nothing_else(path: Path) -> None:
    recipe = load_recipe(path)
    before = shipped_keys.keys_of(recipe)
    tried = 0
    for stage, spec in recipe.stages.items():
        for option, keyed, config in changes(spec.config):
            after = shipped_keys.keys_of(recipe, {stage: config})
            anew = {name for name in before if after[name] != before[name]}
            assert anew == (with_all_that_follows(recipe, stage) if keyed else set()), f"{stage}.{option}"
            tried += 1
    assert tried > 50


def subclasses(of: type) -> Iterator[type]:
    for each in of.__subclasses__():
        yield each
        yield from subclasses(each)


def test_the_table_leaves_out_no_options_of_ours() -> None:
    visited = set(models().values())
    ours = {each for each in subclasses(StageConfig) if each.__module__.startswith("stages.")}
    bases = {each for each in ours if visited & set(subclasses(each))}
    assert {each.__qualname__ for each in ours - visited - bases} == set()
    for family in (LossEntry, SuitesOptions):  # one option a member
        for name, field in family.model_fields.items():
            assert any(part in visited for part in (field.annotation, *get_args(field.annotation))), name


@pytest.mark.parametrize("model", models().values(), ids=models())
def test_what_is_made_from_options_has_a_version_of_its_own(
    model: type[BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = model.model_construct(**{name: f"one {name}" for name in model.model_fields})
    before = params(values)
    monkeypatch.setattr(model, "VERSION", 1, raising=False)
    assert params(values) == before, "the first leaves keys as they were before there were versions"
    monkeypatch.setattr(model, "VERSION", 2)
    assert params(values) == before | {"VERSION": 2}


def test_a_new_version_of_a_suite_makes_anew_what_uses_it_and_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [load_recipe(path) for path in shipped_keys.paths()]
    before = [shipped_keys.keys_of(recipe) for recipe in recipes]
    monkeypatch.setattr(LangGameOptions, "VERSION", 2)
    changed = 0
    for recipe, keys in zip(recipes, before, strict=True):
        users = {
            name
            for name, spec in recipe.stages.items()
            if (suites := getattr(spec.config, "suites", None)) is not None and suites.langgame is not None
        }
        expected = set().union(*(with_all_that_follows(recipe, name) for name in users))
        after = shipped_keys.keys_of(recipe)
        assert {name for name in keys if after[name] != keys[name]} == expected, recipe.name
        changed += len(users)
    assert changed >= 3, "some recipe has an evaluation with the suite"


def test_how_and_where_a_stage_runs_is_no_part_of_any_key() -> None:
    recipe = load_recipe(shipped_keys.REPOSITORY / "recipes" / "reference.yaml")
    before = shipped_keys.keys_of(recipe)
    for field in Resources.model_fields:
        changed = {
            name: replace(spec, resources=spec.resources.model_copy(update={field: "~ changed ~"}))
            for name, spec in recipe.stages.items()
        }
        assert shipped_keys.keys_of(replace(recipe, stages=changed)) == before, field
    assert shipped_keys.keys_of(replace(recipe, name="another", experiment="another")) == before


def test_keys_of_the_shipped_recipes_are_golden() -> None:
    golden = json.loads(shipped_keys.GOLDEN.read_text(encoding="utf-8"))
    assert shipped_keys.golden() == golden, (
        "results that users have made of these recipes would be made anew; if that is meant, or a recipe was changed, "
        "run python tests/pipeline/shipped_keys.py"
    )
