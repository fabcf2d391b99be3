"""``pipeline status``."""

from __future__ import annotations

import argparse

from pipeline.commands.common import add_json, add_runs

SUMMARY = "show what there is of each stage of a run, or how far all runs are"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``status``."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run's name or a recipe file (default: all runs)")
    add_json(parser)
    add_runs(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Print the state of every stage, or of every run."""
    from pipeline.status import show_status

    return show_status(arguments)
