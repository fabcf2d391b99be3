"""``pipeline clean``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.commands.common import add_json, add_runs, print_json
from pipeline.errors import EXIT_OK

if TYPE_CHECKING:
    from pipeline.clean import Leftover

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
        "--keep-last", type=number, default=0, metavar="N", help="spare the N newest results of each kind of stage"
    )
    add_json(parser)
    add_runs(parser)


def execute(arguments: argparse.Namespace) -> int:
    """List, and delete if that was asked for."""
    from pipeline.clean import delete, leftovers

    found = leftovers(arguments.runs, work=arguments.work, keep_last=arguments.keep_last)
    if arguments.json:
        print_json(_facts(found, delete(found) if arguments.yes else 0))
        return EXIT_OK
    if not found:
        print("nothing to delete")
        return EXIT_OK
    for leftover in found:
        print(f"{leftover.size / _GIGABYTE:8.3f} GB  {leftover.path}{_lost(leftover)}")
    total = sum(leftover.size for leftover in found) / _GIGABYTE
    if arguments.yes:
        print(f"deleted {delete(found) / _GIGABYTE:.3f} GB")
    else:
        print(f"{total:.3f} GB in {len(found)} places; nothing was deleted: --yes deletes them")
    return EXIT_OK


def _lost(leftover: Leftover) -> str:
    """What the deletion costs, to append; nothing of results that nobody needs."""
    from pipeline.views.display import duration

    if leftover.lost is None:
        return ""
    stages, took = ", ".join(leftover.lost.stages), duration(leftover.lost.seconds)
    if leftover.lost.point is None:
        return f"  ({stages}: unfinished, {took}; begun anew anyway)"
    return f"  ({stages}: unfinished at {leftover.lost.point}, {took} of work; begun anew without it)"


def _facts(found: list[Leftover], deleted: int) -> dict[str, Any]:
    from pipeline.views.render import JSON_SCHEMA_VERSION

    listed = [
        {"path": str(leftover.path), "kind": leftover.kind, "bytes": leftover.size}
        | ({"lost": asdict(leftover.lost)} if leftover.lost else {})
        for leftover in found
    ]
    return {"schema_version": JSON_SCHEMA_VERSION, "leftovers": listed, "deleted_bytes": deleted}


def number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"at least 0, not {value}")
    return value
