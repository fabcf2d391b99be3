"""Byte-pair encoding continued: the next merges for sequences of symbols that are merged as far as a tokenizer goes."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from alignment.merge_replay import merge_pair

Sequences = Mapping[tuple[str, ...], int]
"""Symbols in a row -> how often they occur so."""


class Merge(NamedTuple):
    """Two neighbouring symbols that become one.

    Attributes:
        left, right: the symbols.
        frequency: how often they were neighbours when the merge was chosen.
    """

    left: str
    right: str
    frequency: int


def learn_merges(
    sequences: Sequences,
    *,
    min_frequency: int,
    is_allowed: Callable[[str, str], bool],
) -> Iterator[Merge]:
    """The merges that byte-pair encoding makes next, the most frequent pair first, until none is frequent enough.

    Only the counts of pairs in the sequences that a merge changes are touched (Sennrich et al. 2016), so a merge costs
    what it changes and not what there is. Of equally frequent pairs the one that sorts first is taken, so the order of
    the sequences does not matter.

    Args:
        sequences: what to learn from; it is left as it is.
        min_frequency: the fewest occurrences of a pair that is merged.
        is_allowed: asked once for each pair, when its turn has come; what it refuses is never merged.
    """
    words = [list(sequence) for sequence in sequences]
    frequencies = list(sequences.values())
    counts: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += frequencies[index]
            places[pair].add(index)

    queue = [(-count, pair) for pair, count in counts.items() if count >= min_frequency]
    heapq.heapify(queue)
    while queue:
        expected, pair = heapq.heappop(queue)
        count = counts[pair]
        if count < min_frequency:
            continue
        if count != -expected:  # merges since have taken some of its occurrences
            heapq.heappush(queue, (-count, pair))
            continue
        if not is_allowed(*pair):
            continue
        yield Merge(*pair, count)
        created: set[tuple[str, str]] = set()
        for index in places.pop(pair):
            before = words[index]
            after = words[index] = merge_pair(before, pair)
            for old in pairwise(before):
                counts[old] -= frequencies[index]
            for new in pairwise(after):
                counts[new] += frequencies[index]
                places[new].add(index)
                created.add(new)
        symbol = pair[0] + pair[1]
        for new in created:
            if symbol in new and counts[new] >= min_frequency:
                heapq.heappush(queue, (-counts[new], new))
