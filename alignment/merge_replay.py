"""The merges of a byte-pair tokenizer made again on other text, with the count of every pair at every step.

Counts change seldom: of each pair and category only the steps where they do are kept.

Legend: T merges, K categories of text, S segments (stretches of steps over which a pair's counts stay).
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

Pair = tuple[str, str]
Words = Mapping[tuple[str, ...], int]
"""Symbols in a row, before any merge -> how often they occur so."""
Merged = Callable[[Pair], str]

_STEPS_BETWEEN_WATCHES = 256


@dataclass(frozen=True)
class PairCounts:
    """How often pairs of neighbours occur in each category, before each of the T merges.

    Attributes:
        pair: int64 [S], ascending.
        start, end: int64 [S]: the segment holds before the merges start, ..., end - 1. A segment of a merge's own pair
            ends before that merge, so that every pair that a segment gives at a step is a competitor of its merge.
        counts: int64 [S, K].
        merged: int64 [T, K], the counts of each merge's own pair before it.
        totals: int64 [K], all pairs before the first merge.
    """

    pair: np.ndarray
    start: np.ndarray
    end: np.ndarray
    counts: np.ndarray
    merged: np.ndarray
    totals: np.ndarray


class _Changes(NamedTuple):
    """Before merge ``step`` a word gained ``amount`` occurrences of a pair: one entry each."""

    step: array[int]
    pair: array[int]
    word: array[int]
    amount: array[int]


def count_pairs(
    merges: Sequence[Pair], categories: Sequence[Words], *, watch: Callable[[float], None] = lambda share: None
) -> PairCounts:
    """Replay merges on the words of K categories at once.

    A merge costs what it changes, not what there is. Occurrences that overlap (``aaa``) all count, as they do where
    tokenizers are trained.

    Args:
        merges: in their order; a pair makes one symbol, its parts joined.
        watch: told the share of the merges done.
    """
    words = list(dict.fromkeys(word for category in categories for word in category))
    frequencies = np.array([[category.get(word, 0) for category in categories] for word in words], dtype=np.int64)
    number_of: dict[Pair, int] = {}
    changes = _replay([list(word) for word in words], merges, number_of, watch)
    return _segments(changes, frequencies.reshape(len(words), len(categories)), merges, number_of)


def _replay(
    words: list[list[str]], merges: Sequence[Pair], number_of: dict[Pair, int], watch: Callable[[float], None]
) -> _Changes:
    """Merge in place and note what changes; ``number_of`` gets a number for every pair that ever occurs."""
    changes = _Changes(array("i"), array("i"), array("i"), array("i"))
    places: defaultdict[Pair, set[int]] = defaultdict(set)

    def note(step: int, word: int, amounts: Mapping[Pair, int]) -> None:
        for pair, amount in amounts.items():
            if amount:
                changes.step.append(step)
                changes.pair.append(number_of.setdefault(pair, len(number_of)))
                changes.word.append(word)
                changes.amount.append(amount)
                if amount > 0:
                    places[pair].add(word)

    for index, word in enumerate(words):
        note(0, index, Counter(pairwise(word)))
    for step, pair in enumerate(merges):
        if step % _STEPS_BETWEEN_WATCHES == 0:
            watch(step / len(merges))
        for index in sorted(places.pop(pair, ())):
            before = words[index]
            after = merge_pair(before, pair)
            if len(after) != len(before):  # an earlier merge may have taken the pair out of this word
                words[index] = after
                amounts = Counter(pairwise(after))
                amounts.subtract(pairwise(before))
                note(step + 1, index, amounts)
    return changes


def merge_pair(word: Sequence[str], pair: Pair) -> list[str]:
    """The word with every occurrence of the pair made one symbol, from the left."""
    merged: list[str] = []
    position = 0
    while position < len(word):
        if word[position] == pair[0] and position + 1 < len(word) and word[position + 1] == pair[1]:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return merged


def _segments(
    changes: _Changes, frequencies: np.ndarray, merges: Sequence[Pair], number_of: Mapping[Pair, int]
) -> PairCounts:
    """Add up the changes; ``frequencies`` int64 [words, K]."""
    steps = len(merges)
    step, pair, word, amount = (np.frombuffer(part, dtype=np.int32) for part in changes)
    order = np.lexsort((step, pair))
    step, pair = step[order].astype(np.int64), pair[order].astype(np.int64)
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(step) != 0) | (np.diff(pair) != 0)
    firsts = np.flatnonzero(new)
    change = amount[order, None] * frequencies[word[order]]
    change = np.add.reduceat(change, firsts) if len(firsts) else change
    start, pair = step[firsts], pair[firsts]
    begins = np.searchsorted(pair, pair)  # the first segment of each one's pair
    sums = np.cumsum(change, axis=0)
    counts = sums - (sums - change)[begins]
    last = np.append(pair[1:] != pair[:-1], True)[: len(pair)]
    end = np.where(last, steps, np.append(start[1:], steps)[: len(pair)])
    merged_pair = np.array([number_of.get(merge, -1) for merge in merges], dtype=np.int64)
    own = np.searchsorted(pair * (steps + 1) + start, merged_pair * (steps + 1) + np.arange(steps), "right") - 1
    own[(merged_pair < 0) | (np.append(pair, -1)[own] != merged_pair)] = -1  # the row of zeros below
    merged = np.vstack([counts, np.zeros((1, counts.shape[1]), dtype=np.int64)])[own]
    end[own[own >= 0]] = np.flatnonzero(own >= 0)
    kept = (start < end) & counts.any(axis=1)
    return PairCounts(
        pair=pair[kept],
        start=start[kept],
        end=end[kept],
        counts=counts[kept],
        merged=merged,
        totals=counts[start == 0].sum(axis=0),
    )
