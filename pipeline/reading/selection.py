"""A part of a recipe as a recipe of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.reading.loading import fill_section
from pipeline.recipe import Recipe


def only(recipe: Recipe, stage: str, name: str) -> Recipe:
    """A recipe called ``name`` that makes one stage of ``recipe``, and what that stage reads.

    Its run has a directory and a lock of its own; results are shared with ``recipe``, as their keys are the same.
    """
    wanted = {stage}
    for candidate, spec in reversed(recipe.stages.items()):
        if candidate in wanted:
            wanted.update(spec.upstream)
    stages = {other: spec for other, spec in recipe.stages.items() if other in wanted}
    values: dict[str, Any] = {"name": name, "seed": recipe.seed}
    for other, spec in stages.items():
        if spec.section[0] == "stages":
            header = recipe.resolved["stages"][other]
            values.setdefault("stages", {})[other] = {"uses": header["uses"], "needs": header["needs"]}
        fill_section(values, spec.section, spec.option, spec.config)
    resources = {other: value for other, value in recipe.resolved.get("resources", {}).items() if other in stages}
    return replace(recipe, name=name, resolved=values | {"resources": resources}, stages=stages, unused=())
