"""``pipeline graph``."""

from __future__ import annotations

import argparse

from pipeline.commands.common import add_recipe, load
from pipeline.errors import EXIT_OK

SUMMARY = "draw the stages of a recipe"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``graph``."""
    add_recipe(parser)
    parser.add_argument("--format", choices=("ascii", "mermaid", "dot"), default="ascii")


def execute(arguments: argparse.Namespace) -> int:
    """Print the drawing."""
    from pipeline.graph import render

    stages = load(arguments).stages
    edges = {name: list(spec.upstream) for name, spec in stages.items()}
    print(render(edges, {name: spec.uses for name, spec in stages.items()}, arguments.format))
    return EXIT_OK
