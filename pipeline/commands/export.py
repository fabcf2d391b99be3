"""``pipeline export``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.commands.common import add_runs
from pipeline.errors import EXIT_OK, RecipeError

SUMMARY = "copy a finished model with a model card; with --push, upload it"

EPILOG = """\
The directory loads with transformers alone, but for a model that reads its old tokens beside bytes (`expand_input`),
which brings its code. Nothing is overwritten, here or on the hub; what is pushed is private unless --public is given.
With --push, DIR may be an earlier export of the same result: it is uploaded as it is, with the changes to its card.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export``."""
    parser.add_argument("run", metavar="RUN", help="a run's name")
    parser.add_argument("stage", metavar="STAGE", help="a stage of it that makes a model")
    parser.add_argument("directory", type=Path, metavar="DIR", help="a new or an empty directory")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload it to a new repository of the Hugging Face hub")
    parser.add_argument("--public", action="store_true", help="with --push: for everybody to see")
    parser.add_argument("--gguf", action="store_true", help="write a .gguf file too (llama.cpp's converter)")
    add_runs(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Check everything that can be wrong before anything is copied."""
    from pipeline.sharing.exporting import CARD, check_free, converter, export, find, holds, write_gguf
    from pipeline.sharing.pushing import check_repository, push

    if arguments.public and arguments.push is None:
        raise RecipeError("--public is for what is pushed; add --push ORG/NAME, or remove it")
    if arguments.push is not None:
        check_repository(arguments.push)
    else:
        check_free(arguments.directory)
    command = converter() if arguments.gguf else None
    found = find(arguments.run, arguments.stage, arguments.runs)
    if arguments.push is not None and holds(arguments.directory, found):
        print(f"{arguments.directory} is this model already, and is pushed as it is", file=sys.stderr)
    else:
        export(found, arguments.directory, lambda line: print(line, file=sys.stderr, flush=True))
        print(f"{arguments.directory} is the model of {arguments.stage!r}; read its {CARD} before you share it")
    if command is not None:
        print(write_gguf(command, arguments.directory))
    if arguments.push is not None:
        print(push(arguments.directory, arguments.push, public=arguments.public))
    return EXIT_OK
