"""``pipeline compare``."""

from __future__ import annotations

import argparse
import sys

from pipeline.commands.common import add_html, add_json, add_runs, print_json
from pipeline.errors import EXIT_OK

SUMMARY = "put runs side by side: what differs in their recipes and results"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``compare``."""
    parser.add_argument("names", nargs="+", metavar="RUN", help="two runs or more, as `pipeline status` lists them")
    parser.add_argument("--all", action="store_true", help="also metrics that are the same in every run")
    add_html(parser, "write the evaluations, with curves, as one page that needs no other")
    add_json(parser)
    add_runs(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Print the comparison."""
    from pipeline.views.comparison import compare
    from pipeline.views.comparison_text import comparison_page, show_comparison

    comparison = compare(arguments.names, arguments.runs)
    if arguments.html is not None:
        comparison_page(comparison, arguments.html)
    if arguments.json:
        print_json(comparison.to_json())
    else:
        show_comparison(comparison, sys.stdout, everything=arguments.all)
    if arguments.html is not None:
        print(f"as a page: {arguments.html}", file=sys.stderr)
    return EXIT_OK
