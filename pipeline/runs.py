"""The runs that a directory holds, by name."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.nearest import unknown_name

RESOLVED = "recipe.resolved.yaml"


def kept_recipes(runs: Path) -> dict[str, Path]:
    """Name of a run -> the recipe that it keeps."""
    return {path.parent.name: path for path in sorted(runs.glob(f"*/{RESOLVED}"))}


def kept_recipe(run: str, runs: Path) -> Path:
    """The recipe that ``run`` keeps.

    Raises:
        RecipeError: there is no such run.
    """
    kept = kept_recipes(runs)
    if run not in kept:
        raise RecipeError(f"no run in {runs} is called {run!r}{unknown_name(run, list(kept))}")
    return kept[run]
