"""``pipeline show``."""

from __future__ import annotations

import argparse
import sys

from pipeline.commands.common import add_json, add_recipe, load, print_json
from pipeline.errors import EXIT_OK

SUMMARY = "print a recipe with overrides applied and defaults filled"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``show``."""
    add_recipe(parser)
    parser.add_argument("--sources", action="store_true", help="say where each value comes from")
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Print the recipe as YAML, or value by value with its origin."""
    from pipeline.views.render import JSON_SCHEMA_VERSION, print_table, sources_table, value_sources

    recipe = load(arguments)
    sources = value_sources(recipe) if arguments.sources else []
    if arguments.json:
        listed = [{"key": key, "value": value, "from": source} for key, value, source in sources]
        facts = {"recipe": dict(recipe.resolved), **({"sources": listed} if arguments.sources else {})}
        print_json({"schema_version": JSON_SCHEMA_VERSION, **facts})
    elif arguments.sources:
        print_table(sources_table(sources), sys.stdout)
    else:
        from pipeline.reading.yaml_source import as_yaml

        print(as_yaml(recipe.resolved), end="")
    return EXIT_OK
