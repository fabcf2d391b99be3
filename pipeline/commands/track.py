"""``pipeline track``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pipeline.commands.common import add_json, add_runs, print_json
from pipeline.errors import EXIT_OK, PipelineError

if TYPE_CHECKING:
    from pipeline.tracking.sync import Synced

SUMMARY = "send MLflow what it lacks of runs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``track sync``."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    sync = actions.add_parser(
        "sync",
        help="after runs without a connection, a failure of tracking, or a lost database",
        description="Send what MLflow lacks of a run: parameters, curves, final numbers, tags and reports, out of what "
        "the run keeps. What is there already is left alone, so the command may be repeated.",
    )
    sync.add_argument("run", nargs="?", metavar="RUN", help="a run's name (default: all runs)")
    sync.add_argument(
        "--tracking-uri", metavar="URI", help="where to ($MLFLOW_TRACKING_URI, else sqlite:///mlruns/mlflow.db)"
    )
    add_runs(sync)
    add_json(sync)


def execute(arguments: argparse.Namespace) -> int:
    """Send, and say how much of each run was new."""
    from dataclasses import asdict

    from pipeline.runs import kept_recipes
    from pipeline.tracking.place import tracking_uri
    from pipeline.tracking.sync import sync
    from pipeline.urls import without_credentials
    from pipeline.views.render import JSON_SCHEMA_VERSION

    uri = arguments.tracking_uri or tracking_uri()
    names = list(kept_recipes(arguments.runs)) if arguments.run is None else [arguments.run]
    done, exit_code = [], EXIT_OK
    for name in names:
        try:
            done.append(sync(name, arguments.runs, uri))
        except PipelineError as error:
            # One that is at work, or damaged, does not keep the others from being sent.
            print(f"{name}: {error}", file=sys.stderr)
            exit_code = exit_code or error.exit_code
        else:
            if not arguments.json:
                _show(done[-1])
    if arguments.json:
        runs = [asdict(synced) for synced in done]
        print_json({"schema_version": JSON_SCHEMA_VERSION, "tracking": without_credentials(uri), "runs": runs})
    elif not names:
        print(f"there are no runs in {arguments.runs}")
    return exit_code


def _show(synced: Synced) -> None:
    new = [f"{count:,} {what}" for what, count in synced.sent.items() if count]
    print(f"{synced.run}: sent {', '.join(new)}" if new else f"{synced.run}: MLflow has all of it")
    for note in synced.notes:
        print(f"note: {note}")
