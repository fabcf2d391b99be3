"""argparse that names what was probably meant. Light: read for ``pipeline --help``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from pipeline.nearest import did_you_mean, unknown_name


class Parser(argparse.ArgumentParser):
    """Refuses what it does not know with the nearest that it does; an option has to be written out."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # An abbreviation that is right today would change its meaning with the next option.
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse here what is left over: a subcommand knows its own options, the command as a whole does not."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown)
        return found, []

    def _refuse(self, unknown: Iterable[str]) -> NoReturn:
        words = [word.partition("=")[0] for word in unknown]
        near = "".join(did_you_mean(word, self._option_string_actions) for word in words if word.startswith("-"))
        self.error(f"unrecognized arguments: {' '.join(words)}{near}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"there is no {value!r}{unknown_name(value, list(action.choices))}")
