"""Merges made again: the counts of every pair before every merge, against counting anew each time."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignment.merge_replay import count_pairs, merge_pair


def _joined(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """The word after a merge, not as ``merge_pair`` does it: what was joined is marked, so that it joins no more."""
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] = "".join(pair) + "\0"
        else:
            out.append(symbol)
    return tuple(symbol.removesuffix("\0") for symbol in out)


def _naive(merges, categories):
    """Counts of every pair before every merge, and of the merge's own: lists over merges of Counters by category."""
    words = [Counter(category) for category in categories]
    found = []
    for pair in merges:
        counts = [Counter() for _ in words]
        for category, count in zip(words, counts, strict=True):
            for word, frequency in category.items():
                for neighbours in pairwise(word):
                    count[neighbours] += frequency
        found.append(counts)
        merged = []
        for category in words:
            after: Counter[tuple[str, ...]] = Counter()
            for word, frequency in category.items():
                after[_joined(word, pair)] += frequency
            merged.append(after)
        words = merged
    return found


_words = st.dictionaries(st.text("abc", min_size=1, max_size=8).map(tuple), st.integers(1, 9), max_size=6)
_merges = st.lists(st.tuples(*2 * [st.sampled_from(["a", "b", "c", "ab", "aa", "bc", "abc"])]), max_size=6, unique=True)


@given(_merges, st.lists(_words, min_size=1, max_size=3))
def test_counts_are_those_of_counting_anew(merges, categories):
    found = count_pairs(merges, categories)
    expected = _naive(merges, categories)
    for step, counts in enumerate(expected):
        assert found.merged[step].tolist() == [count[merges[step]] for count in counts]
        rows = np.flatnonzero((found.start <= step) & (step < found.end))
        others = {pair for count in counts for pair, number in count.items() if number} - {merges[step]}
        assert sorted(map(tuple, found.counts[rows].tolist())) == sorted(
            tuple(count[pair] for count in counts) for pair in others
        )
    if merges:
        assert found.totals.tolist() == [count.total() for count in expected[0]]


def test_a_pair_is_merged_from_the_left():
    assert merge_pair("aaa", ("a", "a")) == ["aa", "a"]
    assert merge_pair("xaay", ("a", "a")) == ["x", "aa", "y"]
    assert merge_pair(["ab", "c"], ("a", "b")) == ["ab", "c"]


def test_overlapping_pairs_all_count():
    assert count_pairs([("a", "a")], [{tuple("aaa"): 2}]).merged.tolist() == [[4]]
