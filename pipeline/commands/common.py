"""What several commands share: their arguments, the plan that they show, and how they are written down again."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.programs import program
from pipeline.views.display import MODES

if TYPE_CHECKING:
    from pipeline.estimates import Estimate
    from pipeline.plan import Plan
    from pipeline.recipe import Recipe
    from pipeline.request import Request

RUNS = Path("runs")


def add_runs(parser: argparse.ArgumentParser) -> None:
    """``--runs``."""
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help=f"where results are kept (./{RUNS})")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The recipe, ``--set`` and ``--runs``."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="the YAML file")
    add_set(parser)
    add_runs(parser)


def add_set(parser: argparse.ArgumentParser) -> None:
    """``--set``."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change one value, e.g. stages.distill.steps=100 or data.train[0].weight=2 (repeatable)",
    )


def add_json(parser: argparse._ActionsContainer, help_text: str = "machine-readable, alone on stdout") -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help=help_text)


def add_html(parser: argparse.ArgumentParser, help_text: str) -> None:
    """``--html``. A place where nothing can be written is refused while the command line is read, before any work."""
    parser.add_argument("--html", type=_new_file, metavar="FILE", help=help_text)


def _new_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; name a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text}: {path.parent} cannot be written to")
    return path


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Which stages: what ``request`` reads."""
    options = {
        "--from": ("start", "this stage and what follows it"),
        "--until": ("until", "this stage and what it needs; with --from, what lies between"),
        "--only": ("only", "this stage alone; refused if what it needs is not up to date"),
        "--force": ("force", "run it even if up to date"),
        "--restart": ("restart", "begin it anew: discard what an interrupted attempt saved"),
    }
    for option, (name, help_text) in options.items():
        parser.add_argument(
            option, dest=name, action="append", default=[], metavar="STAGE", help=f"{help_text} (repeatable)"
        )
    parser.add_argument(
        "--on-code-change",
        choices=("warn", "rerun", "error"),
        default="warn",
        help="what to do about results that other code than this made (warn: say so and keep them)",
    )
    parser.add_argument("--force-all", action="store_true", help="run every selected stage even if up to date")


def add_view(parser: argparse.ArgumentParser) -> None:
    """``--progress`` and ``--verbose``: what ``open_view`` reads."""
    parser.add_argument(
        "--progress",
        choices=MODES,
        default="auto",
        help="live: a picture of the run; plain: lines; quiet: warnings alone (auto: live on a terminal, else plain)",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show also what libraries print; the logs have it in any case"
    )


def request(arguments: argparse.Namespace) -> Request:
    """What the arguments of ``add_selection`` ask for."""
    from pipeline.request import Request

    names = {name: tuple(getattr(arguments, name)) for name in ("start", "until", "only", "force", "restart")}
    return Request(**names, force_all=arguments.force_all, on_code_change=arguments.on_code_change)


def load(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the arguments of ``add_recipe`` name.

    Raises:
        RecipeError: it is wrong; all problems at once.
    """
    from pipeline.reading.loading import load_recipe

    return load_recipe(arguments.recipe, arguments.overrides)


def make_plan(arguments: argparse.Namespace) -> Plan:
    """What the arguments of ``add_recipe`` and ``add_selection`` ask for, against what the store holds.

    Raises:
        RecipeError: the recipe is wrong or cannot be launched.
    """
    from pipeline import planner
    from pipeline.reading.launch_checks import check_recipe

    recipe = load(arguments)
    check_recipe(recipe)
    return planner.make_plan(recipe, arguments.runs, request(arguments))


def show_plan(plan: Plan, expected: Mapping[str, Estimate]) -> None:
    """Print the table of ``plan``, how long all of it may take, and what its recipe may not have meant."""
    from pipeline.reading.notes import notes
    from pipeline.views.display import counted, duration
    from pipeline.views.overview import left_behind
    from pipeline.views.render import plan_table, print_table

    print_table(plan_table(plan, expected), sys.stdout)
    for note in notes(plan.recipe):
        print(f"note: {note}")
    if earlier := left_behind(plan):
        print(
            f"note: the results of {', '.join(earlier)} of earlier options or inputs stay in the store until "
            "`pipeline clean --yes`; to keep both as runs, give this one another name: --set name=..."
        )
    if not plan.pending:
        print("everything is up to date")
        return
    twins = plan.twins
    for name, other in twins.items():
        print(f"note: {name} is the same work as {other}, which is done once")
    to_run = len(plan.pending) - len(twins)
    unknown = to_run - len(expected)
    total = duration(sum(estimate.seconds for estimate in expected.values()))
    rest = f", and {unknown} of which nothing is known" if unknown else ""
    about = f"; by earlier runs, about {total}{rest}" if expected else ""
    print(f"{to_run} of {counted(len(plan.stages), 'stage')} to run{about}")


def print_json(value: Any) -> None:
    """A value for programs, on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def view_options(arguments: argparse.Namespace) -> list[str]:
    """What ``add_view`` read, on a command line."""
    progress = [] if arguments.progress == "auto" else ["--progress", arguments.progress]
    return [*progress, *(["--verbose"] if arguments.verbose else [])]


def command_line(
    command: str, arguments: argparse.Namespace, options: Sequence[str] = (), *, subject: str | None = None
) -> str:
    """The same command again, for people to paste.

    Args:
        command: which one.
        arguments: with those of ``add_recipe``.
        options: on a command line, those beside ``--runs`` and ``--set``.
        subject: what the command is about; None for the recipe.
    """
    words = [program("pipeline"), command, subject or str(arguments.recipe)]
    if arguments.runs != RUNS:
        words += ["--runs", str(arguments.runs)]
    words += [word for override in arguments.overrides for word in ("--set", override)]
    return shlex.join([*words, *options])
