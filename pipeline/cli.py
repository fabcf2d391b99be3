"""The command ``pipeline``: one function a subcommand.

Everything that takes time to import is imported inside the functions, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import EXIT_KILLED, EXIT_OK, EXIT_STAGE_FAILED, EXIT_WORK_PENDING, PipelineError
from pipeline.programs import program

if TYPE_CHECKING:
    from pipeline.plan import Plan
    from pipeline.recipe import Recipe

DEBUG_VARIABLE = "TOKENFERRY_DEBUG"

_EXIT_CODES = """\
exit codes:
  0 up to date     1 a stage failed   2 wrong recipe or command line   3 plan --check found work
  4 run is locked  75 interrupted: the same command goes on   130 killed by a second Ctrl-C
"""

_VALIDATE_HELP = """\
checks, all of them before it answers:
  schema      the file is YAML without duplicate keys; every key is known, every value is of its type
  graph       every input is filled by exactly the stages it takes, and there is no cycle
  launching   batches divide over the processes; hostfiles and accelerate files are right and fit the recipe
  references  packages are installed, files exist, hub repositories are cached or can be reached
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; problems are printed on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; nothing was changed", file=sys.stderr)
        return EXIT_KILLED
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exc()
        return EXIT_STAGE_FAILED
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="tokenferry-", suffix=".log", delete=False) as log:
        traceback.print_exception(error, file=log)
    summary = "".join(traceback.format_exception_only(error)).strip()
    print(f"this is a fault in tokenferry: {summary}\ndetails: {log.name} (or set {DEBUG_VARIABLE}=1)", file=sys.stderr)
    return EXIT_STAGE_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeline",
        description="Carry a language model's knowledge from one tokenizer to another: run a recipe, stage by stage.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    runs = argparse.ArgumentParser(add_help=False)
    runs.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where results are kept (./runs)")
    recipe = argparse.ArgumentParser(add_help=False)
    recipe.add_argument("recipe", type=Path, metavar="RECIPE", help="the YAML file")
    recipe.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change one value, e.g. stages.distill.steps=100 or data.train[0].weight=2 (repeatable)",
    )

    def command(name: str, function: Any, summary: str, *parents: argparse.ArgumentParser, epilog: str = "") -> Any:
        added = commands.add_parser(
            name,
            help=summary,
            description=summary,
            parents=[*parents, runs],
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=function)
        return added

    run = command("run", _run, "bring a recipe up to date: skip, resume or run each stage", recipe)
    run.add_argument(
        "--force", action="append", default=[], metavar="STAGE", help="run it even if up to date (repeatable)"
    )
    run.add_argument("--dry-run", action="store_true", help="only show what would be done")
    plan = command("plan", _plan, "show what `run` would do, and why", recipe)
    plan.add_argument("--force", action="append", default=[], metavar="STAGE", help="as for `run`")
    plan.add_argument("--check", action="store_true", help=f"exit with {EXIT_WORK_PENDING} if anything would run")
    plan.add_argument("--json", action="store_true", help="machine-readable, alone on stdout")
    audit = command("audit", _audit, "say what a recipe's tokenizers do to its text, before training", recipe)
    audit.add_argument("--json", action="store_true", help="print report.json, alone on stdout")
    status = command("status", _status, "show what there is of a run, or of all runs")
    status.add_argument("run", nargs="?", metavar="RUN", help="a run's name or a recipe file (default: all runs)")
    status.add_argument("--json", action="store_true", help="machine-readable, alone on stdout")
    graph = command("graph", _graph, "draw the stages of a recipe", recipe)
    graph.add_argument("--format", choices=("ascii", "mermaid", "dot"), default="ascii")
    command("validate", _validate, "check a recipe without running anything", recipe, epilog=_VALIDATE_HELP)
    slurm = command(
        "slurm", _slurm, "print a job script for sbatch that runs a recipe and goes on after preemption", recipe
    )
    slurm.epilog = "usual: pipeline slurm RECIPE > job.sbatch, then sbatch job.sbatch"
    show = command("show", _show, "print a recipe with overrides applied and defaults filled", recipe)
    show.add_argument("--sources", action="store_true", help="say where each value comes from")
    return parser


def _load(arguments: argparse.Namespace) -> Recipe:
    from pipeline.loading import load_recipe

    return load_recipe(arguments.recipe, arguments.overrides)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _make_plan(arguments: argparse.Namespace) -> Plan:
    from pipeline.launch_checks import check_recipe
    from pipeline.planner import make_plan

    recipe = _load(arguments)
    check_recipe(recipe)
    return make_plan(recipe, arguments.runs, arguments.force)


def _show_plan(plan: Plan) -> None:
    from pipeline.render import plan_table, print_table

    print_table(plan_table(plan), sys.stdout)
    for section in plan.recipe.unused:
        print(f"note: no stage reads {section}")


def _plan(arguments: argparse.Namespace) -> int:
    plan = _make_plan(arguments)
    if arguments.json:
        from pipeline.render import plan_json

        _print_json(plan_json(plan))
    else:
        _show_plan(plan)
        print(
            f"{len(plan.pending)} of {len(plan.stages)} stages to run" if plan.pending else "everything is up to date"
        )
    return EXIT_WORK_PENDING if arguments.check and plan.pending else EXIT_OK


def _run(arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        return _plan(argparse.Namespace(**vars(arguments), json=False, check=False))
    plan = _make_plan(arguments)
    _show_plan(plan)
    from pipeline.render import run_summary
    from pipeline.runner import execute
    from pipeline.tracking import Tracker, tracking_uri, ui_command

    uri = tracking_uri()
    started = time.monotonic()
    tracker = Tracker(plan, uri=uri, warn=lambda line: print(line, file=sys.stderr)) if plan.pending else None
    show = _show_line if plan.pending else _show_nothing
    result = execute(plan, tracker=tracker, out=show, command=_command_line("run", arguments, arguments.force))
    if plan.pending:
        made = sum(not stage.cached for stage in result.stages)
        print(f"{made} of {len(result.stages)} stages were run in {time.monotonic() - started:.0f} s")
    else:
        print("everything is up to date")
    for line in run_summary(plan):
        print(line)
    if result.mlflow_run_id:
        print(f"MLflow run {result.mlflow_run_id}; to look at it:\n  {ui_command(uri)}")
    return EXIT_OK


def _show_line(line: str) -> None:
    print(line, flush=True)


def _show_nothing(line: str) -> None:
    """When nothing runs, the plan has said everything."""


def _command_line(command: str, arguments: argparse.Namespace, force: Sequence[str] = ()) -> str:
    """The same again, for people to paste."""
    words = [program("pipeline"), command, str(arguments.recipe)]
    if arguments.runs != Path("runs"):
        words += ["--runs", str(arguments.runs)]
    words += [word for override in arguments.overrides for word in ("--set", override)]
    words += [word for stage in force for word in ("--force", stage)]
    return shlex.join(words)


def _audit(arguments: argparse.Namespace) -> int:
    from pipeline.audit import audit

    report = audit(arguments, _command_line("audit", arguments))
    if arguments.json:
        print((report / "report.json").read_text(encoding="utf-8"), end="")
        return EXIT_OK
    print((report / "table.txt").read_text(encoding="utf-8"))
    print(f"as a page:  {report / 'report.html'}\nas numbers: {report / 'report.json'}")
    return EXIT_OK


def _status(arguments: argparse.Namespace) -> int:
    from pipeline.status import show_status

    return show_status(arguments)


def _graph(arguments: argparse.Namespace) -> int:
    from pipeline.graph import render

    stages = _load(arguments).stages
    edges = {
        name: list(dict.fromkeys(other for names in spec.inputs.values() for other in names))
        for name, spec in stages.items()
    }
    print(render(edges, {name: spec.uses for name, spec in stages.items()}, arguments.format))
    return EXIT_OK


def _validate(arguments: argparse.Namespace) -> int:
    from pipeline.launch_checks import check_recipe
    from pipeline.pinning import pin

    recipe = _load(arguments)
    check_recipe(recipe)
    pin(recipe, arguments.runs / "fingerprints.json")
    for section in recipe.unused:
        print(f"note: no stage reads {section}")
    print(f"{arguments.recipe}: schema, graph, launching and references are right ({len(recipe.stages)} stages)")
    return EXIT_OK


def _slurm(arguments: argparse.Namespace) -> int:
    from pipeline.job_script import job_script
    from pipeline.launch_checks import check_recipe

    recipe = _load(arguments)
    check_recipe(recipe)
    print(job_script(recipe, _command_line("run", arguments)), end="")
    return EXIT_OK


def _show(arguments: argparse.Namespace) -> int:
    recipe = _load(arguments)
    if arguments.sources:
        from pipeline.render import print_table, value_sources

        print_table(value_sources(recipe), sys.stdout)
        return EXIT_OK
    import yaml

    print(yaml.safe_dump(dict(recipe.resolved), sort_keys=False, allow_unicode=True), end="")
    return EXIT_OK
