"""The name that was probably meant. Light: read for ``pipeline --help``."""

from __future__ import annotations

import difflib
from collections.abc import Collection

_CUTOFF = 0.55
"""Of difflib's ratio: ``amll`` is near enough to ``alm``."""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing when no known name is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=_CUTOFF)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown_name(name: str, known: Collection[str]) -> str:
    """The nearest known name if there is one, otherwise all of them."""
    return did_you_mean(name, known) or f" (known: {', '.join(known) or 'none'})"
