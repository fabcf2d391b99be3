"""``pipeline mixture``."""

from __future__ import annotations

import argparse

from pipeline.commands.pages import add_page, say, show
from pipeline.errors import RecipeError

SUMMARY = "infer what mixture of text a byte-pair tokenizer was trained on"
DEFAULT_MERGES = 3000
"""About a minute for a few kinds of text."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``mixture``."""
    parser.add_argument("tokenizer", metavar="TOKENIZER", help="a byte-pair tokenizer, given as for `card`")
    parser.add_argument(
        "--category",
        dest="categories",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="a sample of one kind of text: plain, .jsonl or .parquet (at least two)",
    )
    parser.add_argument(
        "--merges",
        type=int,
        default=DEFAULT_MERGES,
        metavar="N",
        help=f"use the first N merges; the time grows faster than N ({DEFAULT_MERGES})",
    )
    add_page(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Print the mixture."""
    from pipeline.cards import as_usage_error, find_texts, find_tokenizers

    if len(arguments.categories) < 2:
        raise RecipeError("--category: a mixture is of at least two kinds of text; give a sample of each")
    if arguments.merges < 1:
        raise RecipeError(f"--merges: at least 1, not {arguments.merges}")
    ((name, path),) = find_tokenizers([arguments.tokenizer]).items()
    categories = find_texts(arguments.categories)
    with as_usage_error():
        from stages.cards.report import mixture_report

        report = mixture_report(
            name,
            path,
            categories,
            max_merges=arguments.merges,
            say=say,
        )
    return show(report, arguments)
