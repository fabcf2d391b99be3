"""``pipeline audit``."""

from __future__ import annotations

import argparse

from pipeline.commands.common import add_json, add_recipe, command_line
from pipeline.errors import EXIT_OK

SUMMARY = "say what a recipe's tokenizers do to its text, before training"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``audit``."""
    add_recipe(parser)
    add_json(parser, "print report.json, alone on stdout")


def execute(arguments: argparse.Namespace) -> int:
    """Bring the audit up to date and print its report."""
    from pipeline.audit import audit

    report = audit(arguments, command_line("audit", arguments))
    if arguments.json:
        print((report / "report.json").read_text(encoding="utf-8"), end="")
        return EXIT_OK
    print((report / "table.txt").read_text(encoding="utf-8"))
    print(f"as a page:  {report / 'report.html'}\nas numbers: {report / 'report.json'}")
    return EXIT_OK
