"""``pipeline card``."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.pages import add_page, say, show

SUMMARY = "say what tokenizers hold and what they make of text, without any model"
EPILOG = """\
a tokenizer is a directory, a file (tokenizer.json, *.model, *.gguf, ...), package:NAME/PATH, or a repository of the hub
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``card``."""
    parser.add_argument("tokenizers", nargs="+", metavar="[NAME=]TOKENIZER", help="shown side by side")
    parser.add_argument(
        "--against", metavar="[NAME=]TOKENIZER", help="what the others are compared with: the one before"
    )
    parser.add_argument(
        "--text",
        dest="texts",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="a text, best a language each: plain, .jsonl or .parquet (repeatable; default: small built-in samples)",
    )
    parser.add_argument(
        "--lexicon",
        type=Path,
        metavar="FILE",
        help="words, roots and affixes, one a line; ENTRY<tab>pure for the last two",
    )
    add_page(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Print the cards."""
    from pipeline.cards import as_usage_error, find_texts, find_tokenizers

    first = [] if arguments.against is None else [arguments.against]
    paths = find_tokenizers([*first, *arguments.tokenizers])
    texts = find_texts(arguments.texts)
    with as_usage_error():
        from stages.cards.report import card_report

        report = card_report(
            paths,
            before=next(iter(paths)) if first else None,
            texts=texts,
            lexicon=arguments.lexicon,
            say=say,
        )
    return show(report, arguments)
