"""Words that mark places in a conversation, to see where a chat template puts them."""

from __future__ import annotations

import re
from typing import NamedTuple


class Skeleton(NamedTuple):
    """A rendering with K sentinels: their numbers, and the K + 1 texts around them."""

    gaps: list[str]
    numbers: list[int]


def unused_sentinel(*texts: str) -> str:
    """A word of letters that none of the texts contains."""
    sentinel = "Qxz"
    while any(sentinel in text for text in texts):
        sentinel += "xz"
    return sentinel


def numbered_sentinel(sentinel: str, number: int) -> str:
    """One sentinel of many, none of which contains another."""
    return f"{sentinel}{number}Z"


def split_at_sentinels(rendered: str, sentinel: str) -> Skeleton:
    """The numbers of the sentinels in a rendering, and the texts around them."""
    pieces = re.split(rf"{sentinel}(\d+)Z", rendered)
    return Skeleton(pieces[::2], [int(number) for number in pieces[1::2]])
