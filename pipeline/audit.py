"""The command ``pipeline audit``: what the tokenizers of a recipe do to its text, before anything is trained."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.reading.selection import only
from pipeline.recipe import Recipe
from pipeline.runner import execute

STAGE_KIND = "audit"


def audit(arguments: argparse.Namespace, command: str) -> Path:
    """Bring the recipe's audit up to date and return the directory of its report.

    It is a run of its own, ``<recipe>-audit``: it can go on beside a run of the recipe, leaves what that run keeps
    alone, and shares results with it. Nothing is tracked.

    Args:
        arguments: ``recipe``, ``overrides``, ``runs`` and ``json``, which sends progress to stderr.
        command: the command line that does the same again, for messages.

    Raises:
        RecipeError: the recipe is wrong, or gives no teacher, no target tokenizer or no text.
        PipelineError: see ``pipeline.runner.execute``.
    """
    recipe = audit_recipe(arguments.recipe, arguments.overrides)
    plan = make_plan(recipe, arguments.runs)
    say = sys.stderr if arguments.json else sys.stdout

    def show(line: str) -> None:
        if plan.pending:  # otherwise the report says everything
            print(line, file=say, flush=True)

    execute(plan, out=show, command=lambda outstanding: command)
    return plan.run_directory / "stages" / plan.stages[-1].name / "out"


def audit_recipe(path: Path, overrides: list[str]) -> Recipe:
    """The recipe at ``path`` reduced to its audit; one that has none gets one with default options.

    Raises:
        RecipeError: the recipe is wrong, or has several audits.
    """
    recipe = load_recipe(path, overrides, ensure=STAGE_KIND)
    audits = [name for name, spec in recipe.stages.items() if spec.uses == STAGE_KIND]
    if len(audits) > 1:
        raise RecipeError(
            f"{path}: has several audits, {', '.join(audits)}: `pipeline run` makes them all; for this command keep one"
        )
    return only(recipe, audits[0], f"{recipe.name}-audit")
