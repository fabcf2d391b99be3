"""The command ``pipeline``: which subcommands there are, and what becomes of errors.

Everything that takes time to import is imported when a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from pipeline.commands import COMMANDS
from pipeline.commands.arguments import Parser
from pipeline.commands.standard_streams import usable
from pipeline.errors import EXIT_KILLED, EXIT_OK, EXIT_STAGE_FAILED, EXIT_USAGE, PipelineError

DEBUG_VARIABLE = "TOKENFERRY_DEBUG"

_EXIT_CODES = """\
exit codes:
  0 up to date     1 a stage failed   2 wrong recipe or command line   3 plan --check found work
  4 run is locked  75 interrupted: the same command goes on   130 killed by a second Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; problems are printed on stderr."""
    usable()
    parser = command_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    arguments = parser.parse_args(argv)
    try:
        return arguments.execute(arguments)
    except PipelineError as error:
        print(_masked(str(error)), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; nothing was changed", file=sys.stderr)
        return EXIT_KILLED
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        return _refused(error)
    except Exception as error:
        return _unexpected(error)


def _masked(text: str) -> str:
    from stages.masking import environment_secrets, mask_text

    return mask_text(text, environment_secrets())


def _refused(error: OSError) -> int:
    from pipeline.durable import refusal

    problem = refusal(error)
    if problem is None:
        return _unexpected(error)
    print(_masked(str(problem)), file=sys.stderr)
    return problem.exit_code


def _unexpected(error: Exception) -> int:
    details = _masked("".join(traceback.format_exception(error)))
    if os.environ.get(DEBUG_VARIABLE) == "1":
        print(details, end="", file=sys.stderr)
        return EXIT_STAGE_FAILED
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="tokenferry-", suffix=".log", delete=False) as log:
        log.write(details)
    summary = _masked("".join(traceback.format_exception_only(error)).strip())
    print(f"this is a fault in tokenferry: {summary}\ndetails: {log.name} (or set {DEBUG_VARIABLE}=1)", file=sys.stderr)
    return EXIT_STAGE_FAILED


def command_parser() -> argparse.ArgumentParser:
    """Every subcommand with its arguments."""
    parser = Parser(
        prog="pipeline",
        description="Carry a language model's knowledge from one tokenizer to another: run a recipe, stage by stage.",
        epilog=_EXIT_CODES,
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=16, width=100),
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module_name in COMMANDS.items():
        module = importlib.import_module(module_name)
        added = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.SUMMARY,
            epilog=getattr(module, "EPILOG", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(added)
        added.set_defaults(execute=module.execute)
    return parser
