"""``pipeline show``."""

from __future__ import annotations

import argparse
import sys

from pipeline.commands.common import add_recipe, load
from pipeline.errors import EXIT_OK

SUMMARY = "print a recipe with overrides applied and defaults filled"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``show``."""
    add_recipe(parser)
    parser.add_argument("--sources", action="store_true", help="say where each value comes from")


def execute(arguments: argparse.Namespace) -> int:
    """Print the recipe as YAML, or value by value with its origin."""
    recipe = load(arguments)
    if arguments.sources:
        from pipeline.render import print_table, value_sources

        print_table(value_sources(recipe), sys.stdout)
        return EXIT_OK
    import yaml

    print(yaml.safe_dump(dict(recipe.resolved), sort_keys=False, allow_unicode=True), end="")
    return EXIT_OK
