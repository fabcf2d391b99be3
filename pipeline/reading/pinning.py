"""Following a recipe's references: what each one stands for right now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.keys import keyed_params, map_references
from pipeline.reading.loading import recipe_error
from pipeline.reading.problems import Location, Problem
from pipeline.recipe import Recipe, StageSpec
from stages.references import Fingerprint, ReferenceProblem, fingerprint, parse
from stages.stage import StageConfig


@dataclass(frozen=True)
class Pinned:
    """One stage's configuration with its references followed.

    Attributes:
        config: references spelled so that they mean the same from any directory and at any time: absolute paths,
            installed versions, hub commits.
        params: what goes into the key (``keys.keyed_params``).
    """

    config: StageConfig
    params: Mapping[str, Any]


def pin(recipe: Recipe, memo: Path) -> dict[str, Pinned]:
    """Follow every reference of every stage; local files are read to know their content.

    Args:
        recipe: whose references.
        memo: JSON file that remembers the digests of unchanged files.

    Raises:
        RecipeError: holds every reference that leads nowhere.
    """
    base = recipe.directory
    problems: list[Problem] = []
    fingerprints: dict[tuple[str, tuple[str, ...] | None], Fingerprint] = {}

    def follow(spec: StageSpec, location: Location, text: str) -> Fingerprint:
        known = (text, spec.config.reference_files)
        if known not in fingerprints:
            try:
                fingerprints[known] = fingerprint(parse(text, base), memo, spec.config.reference_files)
            except ReferenceProblem as problem:
                problems.append(Problem(spec.place(location), str(problem)))
                return Fingerprint("", {"reference": text})
        return fingerprints[known]

    pinned = {
        name: Pinned(
            map_references(
                spec.config, lambda place, text, spec=spec: follow(spec, place, text).description["reference"]
            ),
            keyed_params(spec.config, lambda place, text, spec=spec: follow(spec, place, text).identity),
        )
        for name, spec in recipe.stages.items()
    }
    if problems:
        raise recipe_error(list(dict.fromkeys(problems)), recipe.path, recipe.origins)
    return pinned
