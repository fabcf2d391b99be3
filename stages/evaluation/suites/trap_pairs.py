"""Which pairs of words are traps of a tokenizer, and for each a control: the same words in other pairs, without one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from alignment.byte_view import ByteView
from stages.evaluation.suites.trap_words import Crossing, Pair, crossings, readings

BLOCK = 64
"""Traps that exchange their second words for controls."""
SHORTEST = 6
"""Letters of a glued pair, so that there are other places to cut."""


@dataclass(frozen=True)
class Trap:
    """A pair with a token across its border, and its control.

    Attributes:
        strict: the token is itself a word.
        ambiguous: the trap or its control can be read as words in more than one way.
    """

    pair: Pair
    crossing: Crossing
    control: Pair
    strict: bool
    ambiguous: bool


@dataclass(frozen=True)
class Found:
    """What a tokenizer does to the pairs that were tried.

    Attributes:
        pairs: how many were tried.
        crossing, strict: how many have a token across the border, and one that is itself a word.
        traps: those that were wanted, strict ones and others in turn.
        without_control: wanted traps that were left out, as no exchange of second words frees them.
    """

    pairs: int
    crossing: int
    strict: int
    traps: tuple[Trap, ...]
    without_control: int


def draw_pairs(words: Sequence[str], count: int, rng: Random) -> list[Pair]:
    """``count`` different pairs of two different words, long enough to be cut in other places."""
    found: dict[Pair, None] = {}
    while len(found) < count:
        first, second = rng.sample(words, 2)
        if len(first) + len(second) >= SHORTEST:
            found[Pair(first, second)] = None
    return list(found)


def find_traps(view: ByteView, pairs: Sequence[Pair], words: Collection[str], wanted: int) -> Found:
    """The first ``wanted`` traps among ``pairs``, half of them strict where there are so many."""
    crossed = [
        (pair, crossing) for pair, crossing in zip(pairs, crossings(view, pairs), strict=True) if crossing is not None
    ]
    strict = [entry for entry in crossed if entry[1].text in words]
    others = [entry for entry in crossed if entry[1].text not in words]
    strict_wanted = max(min(len(strict), wanted // 2), wanted - len(others))
    chosen = _in_turn(strict[:strict_wanted], others[: wanted - min(len(strict), strict_wanted)])
    traps = [
        trap for start in range(0, len(chosen), BLOCK) for trap in _matched(view, chosen[start : start + BLOCK], words)
    ]
    return Found(len(pairs), len(crossed), len(strict), tuple(traps), len(chosen) - len(traps))


def _in_turn(
    left: Sequence[tuple[Pair, Crossing]], right: Sequence[tuple[Pair, Crossing]]
) -> list[tuple[Pair, Crossing]]:
    """Both, spread evenly among each other."""
    places = [((place + 0.5) / len(side), entry) for side in (left, right) for place, entry in enumerate(side)]
    return [entry for _, entry in sorted(places, key=lambda place: place[0])]


def _matched(view: ByteView, block: Sequence[tuple[Pair, Crossing]], words: Collection[str]) -> list[Trap]:
    """Traps with controls: the first word of each with the second word of another, each second word once."""
    exchanged = [Pair(one.first, other.second) for one, _ in block for other, _ in block]
    free = [
        crossing is None and pair.first != pair.second and len(pair.glued) >= SHORTEST
        for pair, crossing in zip(exchanged, crossings(view, exchanged), strict=True)
    ]
    size = len(block)
    partner = maximum_bipartite_matching(csr_array(np.reshape(free, (size, size))), perm_type="column")
    traps = []
    for place, (pair, crossing) in enumerate(block):
        if partner[place] < 0:
            continue
        control = exchanged[place * size + int(partner[place])]
        ambiguous = max(readings(pair, words), readings(control, words)) > 1
        traps.append(Trap(pair, crossing, control, crossing.text in words, ambiguous))
    return traps
