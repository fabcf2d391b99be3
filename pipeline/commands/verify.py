"""``pipeline verify``."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from pipeline.commands.common import RUNS, add_json, add_runs, print_json
from pipeline.errors import EXIT_OK, EXIT_STAGE_FAILED

if TYPE_CHECKING:
    from pipeline.verify import Verdict

SUMMARY = "read every byte of the results of runs and name damaged files"

EPILOG = """\
A plan sees files that are missing or cut short; this sees also bytes that changed in place. What is damaged is noted:
the next run makes it anew. Exit code 0: all that was made is whole; 1: something is damaged.
"""

_GIGABYTE = 1e9


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``verify``."""
    parser.add_argument("run", nargs="*", metavar="RUN", help="a run's name (default: all runs)")
    add_json(parser)
    add_runs(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Check, result by result."""
    from pipeline.programs import program
    from pipeline.runs import kept_recipe, kept_recipes
    from pipeline.verify import verify
    from pipeline.views.render import JSON_SCHEMA_VERSION

    names = list(dict.fromkeys(arguments.run)) or list(kept_recipes(arguments.runs))
    for name in names:
        kept_recipe(name, arguments.runs)  # refuses an unknown name
    verdicts = []
    for verdict in verify(arguments.runs, names):
        verdicts.append(verdict)
        if not arguments.json:
            _show(verdict)
    damaged = [verdict for verdict in verdicts if verdict.state == "damaged"]
    if arguments.json:
        print_json({"schema_version": JSON_SCHEMA_VERSION, "results": [_record(verdict) for verdict in verdicts]})
        return EXIT_STAGE_FAILED if damaged else EXIT_OK
    made = [verdict for verdict in verdicts if verdict.state != "missing"]
    size = sum(verdict.size for verdict in verdicts) / _GIGABYTE
    print(f"{len(made)} results, {size:.3f} GB: " + (f"{len(damaged)} damaged" if damaged else "all whole"))
    if not damaged:
        return EXIT_OK
    place = [] if arguments.runs == RUNS else ["--runs", str(arguments.runs)]
    print("make them anew with:")
    for name in sorted({run for verdict in damaged for run in verdict.stages}):
        forced = [
            word
            for verdict in damaged
            if verdict.note
            for stage in verdict.stages.get(name, ())
            for word in ("--force", stage)
        ]
        print(f"  {shlex.join([program('pipeline'), 'resume', name, *forced, *place])}")
    return EXIT_STAGE_FAILED


def _show(verdict: Verdict) -> None:
    stages = ", ".join(f"{run}: {' '.join(names)}" for run, names in verdict.stages.items())
    print(f"{verdict.state:8} {stages}")
    for problem in verdict.problems:
        print(f"         {problem.path}: {problem.problem}")
    if verdict.note:
        print(f"         not noted: {verdict.note}")


def _record(verdict: Verdict) -> dict[str, object]:
    return {
        "path": str(verdict.path),
        "stages": {run: list(names) for run, names in verdict.stages.items()},
        "state": verdict.state,
        "bytes": verdict.size,
        "problems": [{"path": str(problem.path), "problem": problem.problem} for problem in verdict.problems],
        "note": verdict.note,
    }
