"""``pipeline run``."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.commands import plan as plan_command
from pipeline.commands.common import (
    add_recipe,
    add_selection,
    add_view,
    command_line,
    make_plan,
    request,
    show_plan,
    view_options,
)
from pipeline.errors import EXIT_OK

if TYPE_CHECKING:
    from pipeline.executing.execution import Outstanding
    from pipeline.plan import Plan

SUMMARY = "bring a recipe up to date: skip, resume or run each stage"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``run``."""
    add_recipe(parser)
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """All but the recipe."""
    add_selection(parser)
    parser.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="run up to N stages that do not need each other at once"
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="when a stage fails, go on with those that do not need it"
    )
    add_view(parser)
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")


def execute(arguments: argparse.Namespace) -> int:
    """Plan, run what is not up to date, and show the last report."""
    return bring_up_to_date(arguments, "run", str(arguments.recipe))


def bring_up_to_date(arguments: argparse.Namespace, command: str, subject: str) -> int:
    """The same for any command that runs a recipe; ``command`` and ``subject`` are how it is spelled."""
    if arguments.dry_run:
        return plan_command.execute(argparse.Namespace(**vars(arguments), json=False, check=False))
    from pipeline import runner
    from pipeline.estimates import check_room, estimates
    from pipeline.executing.signals import StopsBetween
    from pipeline.tracking.place import tracking_uri, ui_command
    from pipeline.tracking.tracker import Tracker
    from pipeline.views.live import open_view
    from pipeline.views.render import run_summary

    def again(options: list[str]) -> str:
        return command_line(command, arguments, options, subject=subject)

    with StopsBetween(again(_options(arguments))):
        plan = make_plan(arguments)
        expected = estimates(plan)
        show_plan(plan, expected)
        check_room(plan, expected)
        uri = tracking_uri()
        started = time.monotonic()
        tracker = Tracker(plan, uri=uri, warn=lambda line: print(line, file=sys.stderr)) if plan.pending else None
        # When nothing runs, the plan has said everything.
        mode = arguments.progress if plan.pending else "quiet"
        with open_view(mode, plan, expected, verbose=arguments.verbose, file=sys.stdout) as view:
            result = runner.execute(
                plan,
                tracker=tracker,
                display=view,
                command=lambda outstanding: again(_options_to_go_on(arguments, plan, outstanding)),
                jobs=arguments.jobs,
                keep_going=arguments.keep_going,
            )
    if plan.pending:
        made = sum(not stage.cached for stage in result.stages)
        print(f"{made} of {len(result.stages)} stages were run in {time.monotonic() - started:.0f} s")
    for line in run_summary(plan):
        print(line)
    if result.mlflow_run_id:
        print(f"MLflow run {result.mlflow_run_id}; to look at it:\n  {ui_command(uri)}")
    return EXIT_OK


def _options(arguments: argparse.Namespace) -> list[str]:
    """What begins the same run anew."""
    return [*request(arguments).options(), *_ways(arguments)]


def _options_to_go_on(arguments: argparse.Namespace, plan: Plan, outstanding: Outstanding) -> list[str]:
    """What goes on where this run stopped.

    A stage that was forced and is made is not to be forced again, nor one restarted that has begun: that would discard
    what this run did. Those whose turn had not come must still be named: their old results look up to date.
    """
    asked = request(arguments)
    all_left = asked.force_all and set(outstanding.force) == {stage.name for stage in plan.stages if stage.forced}
    force = () if all_left else outstanding.force
    going_on = replace(asked, force=force, force_all=all_left, restart=outstanding.restart)
    return [*going_on.options(), *_ways(arguments)]


def _ways(arguments: argparse.Namespace) -> list[str]:
    """The options that change how a run goes, not what it makes."""
    jobs = ["--jobs", str(arguments.jobs)] if arguments.jobs > 1 else []
    return [*jobs, *(["--keep-going"] if arguments.keep_going else []), *view_options(arguments)]


def positive(text: str) -> int:
    """An argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"at least 1, not {value}")
    return value
