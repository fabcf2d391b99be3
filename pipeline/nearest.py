"""The name that was probably meant. Light: read for ``pipeline --help``."""

from __future__ import annotations

import difflib
from collections.abc import Collection

_CUTOFF = 0.55
"""Of difflib's ratio: ``amll`` is near enough to ``alm``."""

_MOST_LISTED = 12
"""Known names that are all listed where none is near; of more, only the nearest."""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing when no known name is near. ``ALM`` is as near to ``alm`` as can be."""
    near = _nearest(name, known, 1, _CUTOFF)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown_name(name: str, known: Collection[str], *, listed_in: str = "") -> str:
    """The nearest known name if there is one, otherwise all of them, or the nearest of many.

    Args:
        name: what was given.
        known: what could have been.
        listed_in: where all known names are listed, said where they are too many.
    """
    if near := did_you_mean(name, known):
        return near
    if len(known) <= _MOST_LISTED:
        return f" (known: {', '.join(known) or 'none'})"
    shown = _nearest(name, known, _MOST_LISTED, 0.0)
    rest = f"{len(known) - len(shown)} more"
    return f" (known: {', '.join(shown)} and {rest}{f', all in {listed_in}' if listed_in else ''})"


def _nearest(name: str, known: Collection[str], most: int, cutoff: float) -> list[str]:
    """At most ``most`` of ``known``, the nearest first, upper and lower case alike."""
    folded = {candidate.lower(): candidate for candidate in known}
    return [folded[near] for near in difflib.get_close_matches(name.lower(), folded, n=most, cutoff=cutoff)]
