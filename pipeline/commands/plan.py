"""``pipeline plan``."""

from __future__ import annotations

import argparse

from pipeline.commands.common import add_json, add_recipe, add_selection, make_plan, print_json, show_plan
from pipeline.errors import EXIT_OK, EXIT_WORK_PENDING

SUMMARY = "show what `run` would do, and why"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``plan``."""
    add_recipe(parser)
    add_selection(parser)
    parser.add_argument("--check", action="store_true", help=f"exit with {EXIT_WORK_PENDING} if anything would run")
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Print the plan; with ``--check``, its exit code says whether anything would run."""
    from pipeline.estimates import estimates
    from pipeline.views.render import plan_json

    plan = make_plan(arguments)
    expected = estimates(plan)
    if arguments.json:
        print_json(plan_json(plan, expected))
    else:
        show_plan(plan, expected)
    return EXIT_WORK_PENDING if arguments.check and plan.pending else EXIT_OK
