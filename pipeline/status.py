"""``pipeline status``: what there is of a run, or of all runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import EXIT_OK, RecipeError
from pipeline.loading import load_recipe
from pipeline.overview import overview
from pipeline.planner import make_plan
from pipeline.problems import unknown_name
from pipeline.render import JSON_SCHEMA_VERSION, overview_lines, print_table, run_status, status_table
from pipeline.runs import kept_recipes


def show_status(arguments: argparse.Namespace) -> int:
    """Print the state of every stage of the run that ``arguments`` name, or how far each of several runs is.

    Returns:
        The exit code.

    Raises:
        RecipeError: there is no such run.
    """
    kept = kept_recipes(arguments.runs)
    if arguments.run is None and len(kept) != 1:
        return _show_all(arguments)
    recipe = next(iter(kept.values())) if arguments.run is None else _recipe(arguments.run, kept, arguments.runs)
    run = run_status(make_plan(load_recipe(recipe), arguments.runs))
    if arguments.json:
        _print_json([run])
        return EXIT_OK
    print(f"{run['name']}:")
    print_table(status_table(run), sys.stdout)
    return EXIT_OK


def _show_all(arguments: argparse.Namespace) -> int:
    found = list(overview(arguments.runs))
    if arguments.json:
        _print_json([asdict(run) for run in found])
        return EXIT_OK
    for line in overview_lines(found):
        print(line)
    print("`pipeline status RUN` shows its stages" if found else f"there are no runs in {arguments.runs}")
    return EXIT_OK


def _print_json(runs: list[dict[str, Any]]) -> None:
    print(json.dumps({"schema_version": JSON_SCHEMA_VERSION, "runs": runs}, indent=2, ensure_ascii=False))


def _recipe(run: str, kept: Mapping[str, Path], runs: Path) -> Path:
    """The recipe that a run keeps, or the recipe file that was named."""
    if run in kept:
        return kept[run]
    if Path(run).is_file():
        return Path(run)
    raise RecipeError(f"no run in {runs} and no recipe file is called {run!r}{unknown_name(run, list(kept))}")
