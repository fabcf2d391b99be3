"""``pipeline status``."""

from __future__ import annotations

import argparse

from pipeline.commands.common import add_json, add_runs

SUMMARY = "show what there is of each stage of a run, or how far all runs are"

WATCH_SECONDS = 2.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``status``."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run's name or a recipe file (default: all runs)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"look again every so many seconds ({WATCH_SECONDS:g}) until the run has ended or Ctrl-C",
    )
    add_json(how)
    add_runs(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Print the state of every stage, or of every run."""
    from pipeline.views.status import show_status

    return show_status(arguments)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds; name the run before --watch") from None
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"more than 0 seconds, not {text}")
    return seconds
