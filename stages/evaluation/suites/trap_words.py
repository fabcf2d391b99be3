"""Trap words: two words without the space between them, where a token lies across the border.

Source: ADT, arXiv 2405.17067; evaluation.md §7.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.byte_view import ByteView

CARRIER = "Written: "
"""What stands before a glued pair, here and in the questions, so that both have the same tokens."""


@dataclass(frozen=True)
class Pair:
    """Two words, written without the space."""

    first: str
    second: str

    @property
    def glued(self) -> str:
        return self.first + self.second

    @property
    def border(self) -> int:
        """Where the second word begins, in letters."""
        return len(self.first)


@dataclass(frozen=True)
class Crossing:
    """The token that lies across the border of a pair.

    Attributes:
        text: its letters, without a space in front.
        cuts: where it begins and ends within the glued pair, in letters, without the pair's own ends: where the
            tokenizer tempts to cut.
    """

    text: str
    cuts: tuple[int, ...]


def crossings(view: ByteView, pairs: Sequence[Pair]) -> list[Crossing | None]:
    """Of each pair the token across its border; None where a token ends there.

    Args:
        pairs: of words of ASCII letters.
    """
    found: list[Crossing | None] = []
    for pair, encoding in zip(pairs, view.encode_batch([f"{CARRIER}{pair.glued}\n" for pair in pairs]), strict=True):
        border = len(CARRIER) + pair.border
        token = int(np.searchsorted(encoding.byte_ends, border))
        end = int(encoding.byte_ends[token])
        if end == border:
            found.append(None)
            continue
        start = int(encoding.byte_ends[token - 1]) if token else 0
        begin, stop = max(0, start - len(CARRIER)), min(len(pair.glued), end - len(CARRIER))
        cuts = tuple(cut for cut in (begin, stop) if 0 < cut < len(pair.glued))
        found.append(Crossing(pair.glued[begin:stop], cuts))
    return found


def readings(pair: Pair, words: Collection[str]) -> int:
    """In how many ways a glued pair is one or two of ``words``."""
    glued = pair.glued
    return (glued in words) + sum(glued[:cut] in words and glued[cut:] in words for cut in range(1, len(glued)))
