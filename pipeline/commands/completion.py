"""``pipeline completion``."""

from __future__ import annotations

import argparse

from pipeline.errors import EXIT_OK

SUMMARY = "print a script that completes this command in a shell"

EPILOG = """\
usual, once:
  bash   pipeline completion bash > ~/.local/share/bash-completion/completions/pipeline
  zsh    pipeline completion zsh > "${fpath[1]}/_pipeline"
"""

SHELLS = ("bash", "zsh", "tcsh")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``completion``."""
    parser.add_argument("shell", choices=SHELLS)


def execute(arguments: argparse.Namespace) -> int:
    """Print the script. It is static: pressing TAB starts no Python."""
    import shtab

    from pipeline.cli import command_parser

    parser = command_parser()
    for action in _actions(parser):
        if action.dest in ("recipe", "runs"):
            action.complete = shtab.FILE if action.dest == "recipe" else shtab.DIRECTORY
    print(shtab.complete(parser, arguments.shell))
    return EXIT_OK


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found = list(parser._actions)  # argparse has no public way to them, and shtab reads the same
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for command in action.choices.values() for inner in _actions(command)]
    return found
