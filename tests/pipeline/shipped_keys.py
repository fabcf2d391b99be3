"""Keys of the shipped recipes, with references standing for themselves, so that they are the same on every machine.

``python tests/pipeline/shipped_keys.py`` writes ``shipped_keys.json`` anew: do so when a recipe was changed, or a key
was meant to change. A line that changes there and should not have makes somebody's finished results unknown.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_suffix(".json")

sys.path.insert(0, str(REPOSITORY))

from pipeline import planner  # noqa: E402
from pipeline.keys import keyed_params  # noqa: E402
from pipeline.reading.loading import load_recipe  # noqa: E402
from pipeline.reading.pinning import Pinned  # noqa: E402
from pipeline.recipe import Recipe  # noqa: E402
from stages.stage import StageConfig  # noqa: E402


def paths() -> list[Path]:
    """All recipes that are shipped."""
    return sorted((REPOSITORY / "recipes").glob("*.yaml"))


def keys_of(recipe: Recipe, replaced: dict[str, StageConfig] | None = None) -> dict[str, str]:
    """Stage -> key, with some configurations replaced."""
    configs = {name: spec.config for name, spec in recipe.stages.items()} | (replaced or {})
    pinned = {name: Pinned(config, keyed_params(config, lambda place, text: text)) for name, config in configs.items()}
    _, keys = planner._all_keys(recipe, pinned)
    return keys


def golden() -> dict[str, dict[str, str]]:
    """Recipe -> stage -> the first digits of its key."""
    return {path.name: {name: key[:16] for name, key in keys_of(load_recipe(path)).items()} for path in paths()}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n", encoding="utf-8")
