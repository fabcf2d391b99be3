"""``pipeline clean``."""

from __future__ import annotations

import argparse

from pipeline.commands.common import add_runs
from pipeline.errors import EXIT_OK

SUMMARY = "list what no run needs any more; with --yes, delete it"

EPILOG = """\
A run needs what its links lead to and what the recipe that it keeps asks for. To be rid of a run, delete its own
directory, runs/NAME, and then clean. What some process is at work on is never touched.
"""

_GIGABYTE = 1e9


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``clean``."""
    parser.add_argument("--yes", action="store_true", help="delete what is listed")
    parser.add_argument("--work", action="store_true", help="also what unfinished stages saved: they will begin anew")
    parser.add_argument(
        "--keep-last", type=_count, default=0, metavar="N", help="spare the N newest results of each kind of stage"
    )
    add_runs(parser)


def execute(arguments: argparse.Namespace) -> int:
    """List, and delete if that was asked for."""
    from pipeline.clean import delete, leftovers

    found = leftovers(arguments.runs, work=arguments.work, keep_last=arguments.keep_last)
    if not found:
        print("nothing to delete")
        return EXIT_OK
    for leftover in found:
        note = "  (unfinished; a run would go on from it)" if leftover.kind == "work" else ""
        print(f"{leftover.size / _GIGABYTE:8.3f} GB  {leftover.path}{note}")
    total = sum(leftover.size for leftover in found) / _GIGABYTE
    if arguments.yes:
        print(f"deleted {delete(found) / _GIGABYTE:.3f} GB")
    else:
        print(f"{total:.3f} GB in {len(found)} places; nothing was deleted: --yes deletes them")
    return EXIT_OK


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"at least 0, not {value}")
    return value
