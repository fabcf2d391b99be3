"""``pipeline ls``."""

from __future__ import annotations

import argparse
import sys

from pipeline.commands.common import add_json, add_runs, print_json
from pipeline.errors import EXIT_OK

SUMMARY = "list what a recipe can name, or what there is"

KINDS = ("stages", "losses", "initializers", "recipes", "runs")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``ls``."""
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=" | ".join(KINDS))
    add_json(parser)
    add_runs(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Print names, each with a line on what it is."""
    from pipeline.views.listing import listing
    from pipeline.views.render import JSON_SCHEMA_VERSION, names_table, print_table

    found = listing(arguments.kind, arguments.runs)
    if arguments.json:
        print_json({"schema_version": JSON_SCHEMA_VERSION, arguments.kind: found})
    elif found:
        print_table(names_table(found), sys.stdout)
    else:
        print(f"there are no {arguments.kind} here", file=sys.stderr)
    return EXIT_OK
