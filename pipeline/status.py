"""``pipeline status``: what there is of a run, or of all runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pipeline.errors import EXIT_OK, RecipeError
from pipeline.loading import load_recipe
from pipeline.planner import make_plan
from pipeline.problems import unknown_name
from pipeline.render import JSON_SCHEMA_VERSION, print_table, run_status, status_table
from pipeline.runs import kept_recipes


def show_status(arguments: argparse.Namespace) -> int:
    """Print the state of every stage of the runs that ``arguments`` name; returns the exit code.

    Raises:
        RecipeError: there is no such run.
    """
    recipes = _kept_recipes(arguments.run, arguments.runs)
    runs = [run_status(make_plan(load_recipe(recipe), arguments.runs)) for recipe in recipes]
    if arguments.json:
        report = {"schema_version": JSON_SCHEMA_VERSION, "runs": runs}
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return EXIT_OK
    for run in runs:
        print(f"{run['name']}:")
        print_table(status_table(run), sys.stdout)
    if not runs:
        print(f"there are no runs in {arguments.runs}")
    return EXIT_OK


def _kept_recipes(run: str | None, runs: Path) -> list[Path]:
    """The recipe file that was named, or the recipe that a run keeps, or those of all runs."""
    kept = kept_recipes(runs)
    if run is None:
        return list(kept.values())
    if run in kept:
        return [kept[run]]
    if Path(run).is_file():
        return [Path(run)]
    raise RecipeError(f"no run in {runs} and no recipe file is called {run!r}{unknown_name(run, list(kept))}")
