"""``pipeline graph``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.common import add_json, add_runs, add_set, print_json
from pipeline.errors import EXIT_OK, RecipeError

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.views.drawing import Picture

SUMMARY = "draw the stages of a recipe"

EPILOG = """\
Where there is a run of the recipe, stages have the colour of their state: fresh, stale, missing, interrupted, failed or
running. Lines of text are coloured on a terminal alone, unless NO_COLOR is set. For a page: --format html > graph.html
"""

FORMATS = ("ascii", "mermaid", "dot", "html")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``graph``."""
    parser.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE", help="the YAML file")
    parser.add_argument("--run", metavar="RUN", help="instead of a file, the recipe that a run keeps")
    add_set(parser)
    add_runs(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--format", choices=FORMATS, default="ascii", help=f"{' | '.join(FORMATS)} (ascii)")
    add_json(how)


def execute(arguments: argparse.Namespace) -> int:
    """Print the drawing."""
    from rich.console import Console

    from pipeline.views import drawing, graph_page

    picture = _picture(arguments)
    if arguments.json:
        print_json(_facts(picture))
    elif arguments.format == "ascii":
        Console(file=sys.stdout, highlight=False).print(drawing.lines(picture), soft_wrap=True)
    else:
        draw = {"mermaid": drawing.mermaid, "dot": drawing.dot, "html": graph_page.page}[arguments.format]
        print(draw(picture))
    return EXIT_OK


def _picture(arguments: argparse.Namespace) -> Picture:
    """The graph of what was named, with states where a run has any.

    Raises:
        RecipeError: neither a recipe nor a run was named, or both; or there is no such thing.
    """
    from pipeline.planner import make_plan
    from pipeline.reading.loading import load_recipe
    from pipeline.runs import RESOLVED, kept_recipe
    from pipeline.views.drawing import Picture

    if (arguments.recipe is None) == (arguments.run is None):
        raise RecipeError("name a recipe file, or a run with --run: one of the two")
    path = arguments.recipe or kept_recipe(arguments.run, arguments.runs)
    recipe = load_recipe(path, arguments.overrides)
    if not (arguments.runs / recipe.name / RESOLVED).exists():
        return Picture(recipe.name, **_structure(recipe))
    try:
        stages = make_plan(recipe, arguments.runs).stages
    except RecipeError as error:
        # The drawing does not depend on files that are elsewhere; only the colours do.
        print(f"note: without states, for they cannot be told here: {str(error).splitlines()[0]}", file=sys.stderr)
        return Picture(recipe.name, **_structure(recipe))
    states, details = ({stage.name: getattr(stage, what) for stage in stages} for what in ("state", "reason"))
    return Picture(recipe.name, **_structure(recipe), states=states, details=details)


def _structure(recipe: Recipe) -> dict[str, dict]:
    return {
        "edges": {name: list(spec.upstream) for name, spec in recipe.stages.items()},
        "kinds": {name: spec.uses for name, spec in recipe.stages.items()},
    }


def _facts(picture: Picture) -> dict[str, object]:
    from pipeline.views.render import JSON_SCHEMA_VERSION

    stages = [
        {"name": name, "uses": picture.kinds[name], "needs": list(needs), "state": picture.states.get(name)}
        for name, needs in picture.edges.items()
    ]
    return {"schema_version": JSON_SCHEMA_VERSION, "recipe": picture.title, "stages": stages}
