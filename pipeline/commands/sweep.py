"""``pipeline sweep``."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from pipeline.commands.common import RUNS, add_recipe, add_view, command_line, view_options
from pipeline.commands.run import positive
from pipeline.errors import EXIT_OK, StageFailed
from pipeline.programs import program
from pipeline.views.display import counted

if TYPE_CHECKING:
    from pipeline.plan import Plan

SUMMARY = "run a recipe once for every combination of values"

EPILOG = """\
commas separate the alternatives of a --set, outside brackets and quotes:
  pipeline sweep RECIPE --set init.input.method=omp,piece_mean --set distill.steps=100,200
makes four runs. What they have in common is made once. The same command goes on after an interruption.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sweep``."""
    add_recipe(parser)
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="as for `run`, within each run")
    parser.add_argument("--keep-going", action="store_true", help="when a run fails, go on with the next")
    add_view(parser)
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")


def execute(arguments: argparse.Namespace) -> int:
    """Plan all, so that nothing is run before everything is right; then run one after another."""
    from pipeline.executing.signals import StopsBetween

    with StopsBetween(_again(arguments)):
        return _sweep(arguments)


def _sweep(arguments: argparse.Namespace) -> int:
    from pipeline.planner import make_plan
    from pipeline.reading.launch_checks import check_recipe
    from pipeline.sweep import combinations

    recipes = combinations(arguments.recipe, arguments.overrides)
    for recipe in recipes:
        check_recipe(recipe)
    plans = [make_plan(recipe, arguments.runs) for recipe in recipes]
    _show(plans)
    if arguments.dry_run:
        return EXIT_OK
    failures = []
    for number, plan in enumerate(plans, start=1):
        print(f"run {number} of {len(plans)}: {plan.recipe.name}")
        try:
            # Planned again: the runs before it have made some of what it needs.
            _run(make_plan(plan.recipe, arguments.runs), arguments)
        except StageFailed as failure:
            if not arguments.keep_going:
                left = len(plans) - number
                raise StageFailed(f"{failure}\n{left} of {len(plans)} runs were not begun") from None
            print(failure, file=sys.stderr)
            failures.append(plan.recipe.name)
    if failures:
        raise StageFailed(f"{len(failures)} of {len(plans)} runs failed: {', '.join(failures)}")
    print(f"all {len(plans)} runs are up to date; to put them side by side:\n  {_comparison(plans, arguments)}")
    return EXIT_OK


def _comparison(plans: list[Plan], arguments: argparse.Namespace) -> str:
    names = [plan.recipe.name for plan in plans]
    place = [] if arguments.runs == RUNS else ["--runs", str(arguments.runs)]
    return shlex.join([program("pipeline"), "compare", *names, *place])


def _show(plans: list[Plan]) -> None:
    """One line a run, and how much of the work they share."""
    keys = {stage.key for plan in plans for stage in plan.pending}
    for plan in plans:
        to_run = len(plan.pending) - len(plan.twins)
        print(f"{plan.recipe.name}: {to_run} of {counted(len(plan.stages), 'stage')} to run")
    print(f"{counted(len(keys), 'result')} to make in {counted(len(plans), 'run')}; what they share is made once")


def _run(plan: Plan, arguments: argparse.Namespace) -> None:
    from pipeline import runner
    from pipeline.estimates import check_room, estimates
    from pipeline.tracking.place import tracking_uri
    from pipeline.tracking.tracker import Tracker
    from pipeline.views.live import open_view

    expected = estimates(plan)
    check_room(plan, expected)
    tracker = Tracker(plan, uri=tracking_uri(), warn=lambda line: print(line, file=sys.stderr))
    again = _again(arguments)
    with open_view(arguments.progress, plan, expected, verbose=arguments.verbose, file=sys.stdout) as view:
        runner.execute(plan, tracker=tracker, display=view, command=lambda outstanding: again, jobs=arguments.jobs)


def _again(arguments: argparse.Namespace) -> str:
    """The command line that goes on with the sweep."""
    jobs = ["--jobs", str(arguments.jobs)] if arguments.jobs > 1 else []
    going = ["--keep-going"] if arguments.keep_going else []
    return command_line("sweep", arguments, [*jobs, *going, *view_options(arguments)])
