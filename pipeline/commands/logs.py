"""``pipeline logs``."""

from __future__ import annotations

import argparse

from pipeline.commands.common import add_runs
from pipeline.errors import EXIT_OK

SUMMARY = "print what a stage wrote while it ran"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``logs``."""
    parser.add_argument("run", metavar="RUN", help="a run's name")
    parser.add_argument("stage", metavar="STAGE", help="a stage of it")
    parser.add_argument("-f", "--follow", action="store_true", help="go on printing until the stage ends")
    parser.add_argument("--attempt", type=int, metavar="N", help="of this attempt (the newest)")
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="of this process of several (0)")
    add_runs(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Print the log."""
    from pipeline.views.logs import show_log

    show_log(arguments.run, arguments.stage, arguments.runs, arguments.attempt, arguments.rank, follow=arguments.follow)
    return EXIT_OK
