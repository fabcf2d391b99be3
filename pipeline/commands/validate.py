"""``pipeline validate``."""

from __future__ import annotations

import argparse

from pipeline.commands.common import add_recipe, load
from pipeline.errors import EXIT_OK

SUMMARY = "check a recipe without running anything"

EPILOG = """\
checks, all of them before it answers:
  schema      the file is YAML without duplicate keys; every key is known, every value is of its type
  graph       every input is filled by exactly the stages it takes, and there is no cycle
  launching   batches divide over the processes; hostfiles and accelerate files are right and fit the recipe
  references  packages are installed, files exist, hub repositories are cached or can be reached
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``validate``."""
    add_recipe(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Check, and say that all is right."""
    from pipeline.launch_checks import check_recipe
    from pipeline.pinning import pin

    recipe = load(arguments)
    check_recipe(recipe)
    pin(recipe, arguments.runs / "fingerprints.json")
    for section in recipe.unused:
        print(f"note: no stage reads {section}")
    print(f"{arguments.recipe}: schema, graph, launching and references are right ({len(recipe.stages)} stages)")
    return EXIT_OK
