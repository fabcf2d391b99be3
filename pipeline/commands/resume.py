"""``pipeline resume``."""

from __future__ import annotations

import argparse

from pipeline.commands import run as run_command
from pipeline.commands.common import add_runs

SUMMARY = "go on with a run from the recipe that it keeps"

EPILOG = "`pipeline run RECIPE` goes on as well; this command needs no recipe file, and refuses to begin a new run."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``resume``."""
    parser.add_argument("run", metavar="RUN", help="a run's name, as `pipeline status` lists them")
    run_command.add_options(parser)
    add_runs(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Run the kept recipe, after saying from where."""
    from pipeline.errors import RecipeError
    from pipeline.reading.recipe_secrets import masked_places
    from pipeline.reading.yaml_source import read_yaml
    from pipeline.runs import kept_recipe

    recipe = kept_recipe(arguments.run, arguments.runs)
    if masked := masked_places(read_yaml(recipe).values):
        raise RecipeError(
            f"{recipe} does not keep the secrets that the run was started with ({', '.join(masked)}); go on with "
            "`pipeline run` and the recipe that has them"
        )
    print(f"going on with {arguments.run} from {recipe}")
    kept = argparse.Namespace(**vars(arguments), recipe=recipe, overrides=[])
    return run_command.bring_up_to_date(kept, "resume", arguments.run)
