"""``pipeline env``."""

from __future__ import annotations

import argparse

from pipeline.commands.common import add_json, add_runs, print_json
from pipeline.errors import EXIT_OK

SUMMARY = "describe this machine and installation, to paste into an issue"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``env``."""
    add_json(parser)
    add_runs(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Print the description."""
    from pipeline.environment import describe

    facts = describe(arguments.runs)
    if arguments.json:
        print_json(facts)
        return EXIT_OK
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:", *(f"  {key}: {item}" for key, item in value.items()), sep="\n")
        else:
            print(f"{name}: {', '.join(value) or 'none' if isinstance(value, list) else value}")
    return EXIT_OK
