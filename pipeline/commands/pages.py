"""What the commands share that make a report for people, as a page too, and for programs: ``card`` and ``mixture``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pipeline.commands.common import add_html, add_json, print_json
from pipeline.errors import EXIT_OK

if TYPE_CHECKING:
    from stages.cards.report import CardReport


def add_page(parser: argparse.ArgumentParser) -> None:
    """``--html`` and ``--json``: what ``show`` reads."""
    add_html(parser, "write it as a page as well")
    add_json(parser)


def say(line: str) -> None:
    """Tell a person how far it is, beside what goes to stdout."""
    print(line, file=sys.stderr, flush=True)


def show(report: CardReport, arguments: argparse.Namespace) -> int:
    """Write ``report`` where the arguments of ``add_page`` want it; the exit code."""
    if arguments.html is not None:
        arguments.html.write_text(report.page, encoding="utf-8")
    if arguments.json:
        print_json(report.values)
    else:
        print(report.text, end="")
    return EXIT_OK
