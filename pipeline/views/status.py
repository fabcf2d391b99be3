"""``pipeline status``: what there is of a run, or of all runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from pipeline.errors import EXIT_OK, RecipeError
from pipeline.executing.locks import is_locked
from pipeline.nearest import unknown_name
from pipeline.plan import Plan
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.reading.pinning import pin
from pipeline.runs import kept_recipes
from pipeline.views.overview import RunOverview, overview
from pipeline.views.render import JSON_SCHEMA_VERSION, overview_lines, run_status, status_table
from pipeline.views.watching import LOG_WIDTH, Look, watch


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
    plan = _planner(recipe, arguments.runs)
    if arguments.json:
        _print_json([run_status(plan())])
    elif arguments.watch is not None:
        watch(lambda: _look_at_one(plan()), arguments.watch, sys.stdout)
    else:
        Console(width=None if sys.stdout.isatty() else LOG_WIDTH).print(_look_at_one(plan()).picture)
    return EXIT_OK


def _show_all(arguments: argparse.Namespace) -> int:
    if arguments.json:
        _print_json([asdict(run) for run in overview(arguments.runs)])
    elif arguments.watch is not None:
        watch(lambda: _look_at_all(arguments.runs), arguments.watch, sys.stdout)
    else:
        print("\n".join(_lines(list(overview(arguments.runs)), arguments.runs)))
    return EXIT_OK


def _lines(found: Sequence[RunOverview], runs: Path) -> list[str]:
    last = "`pipeline status RUN` shows its stages" if found else f"there are no runs in {runs}"
    return [*overview_lines(found), last]


def _planner(path: Path, runs: Path) -> Callable[[], Plan]:
    """Plans one recipe anew each time; what it refers to is followed once."""
    recipe = load_recipe(path)
    pinned = pin(recipe, runs / "fingerprints.json")
    return lambda: make_plan(recipe, runs, pinned=pinned)


def _look_at_one(plan: Plan) -> Look:
    picture = Group(Text(f"{plan.recipe.name}:"), status_table(run_status(plan)))
    if is_locked(plan.run_directory / "run.lock"):
        return Look(picture, "at work")
    return Look(picture, "idle" if plan.pending else "done")


def _look_at_all(runs: Path) -> Look:
    found = list(overview(runs))
    picture = Text("\n".join(_lines(found, runs)), no_wrap=True, overflow="ellipsis")
    if any(run.state == "running" for run in found):
        return Look(picture, "at work")
    return Look(picture, "done" if found and all(run.state == "finished" for run in found) else "idle")


def _print_json(runs: list[dict[str, Any]]) -> None:
    print(json.dumps({"schema_version": JSON_SCHEMA_VERSION, "runs": runs}, indent=2, ensure_ascii=False))


def _recipe(run: str, kept: Mapping[str, Path], runs: Path) -> Path:
    """The recipe that a run keeps, or the recipe file that was named."""
    if run in kept:
        return kept[run]
    if Path(run).is_file():
        return Path(run)
    raise RecipeError(f"no run in {runs} and no recipe file is called {run!r}{unknown_name(run, list(kept))}")
