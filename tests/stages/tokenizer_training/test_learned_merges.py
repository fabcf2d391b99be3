"""Continued byte-pair encoding against a version that counts everything anew at every step."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from stages.tokenizer_training.merges import Merge, learn_merges

SEQUENCES = st.dictionaries(
    st.lists(st.sampled_from(["a", "b", "ab", "c"]), min_size=1, max_size=7).map(tuple), st.integers(1, 5), max_size=8
)


def counted_anew(sequences: dict[tuple[str, ...], int], min_frequency: int, known: set[str], limit: int) -> list[Merge]:
    """Byte-pair encoding by its definition."""
    words = [(list(sequence), count) for sequence, count in sequences.items()]
    refused: set[tuple[str, str]] = set()
    merges: list[Merge] = []
    while len(merges) < limit:
        counts: Counter[tuple[str, str]] = Counter()
        for word, count in words:
            for pair in itertools.pairwise(word):
                counts[pair] += count
        candidates = {pair: count for pair, count in counts.items() if count >= min_frequency and pair not in refused}
        if not candidates:
            break
        pair = min(candidates, key=lambda pair: (-candidates[pair], pair))
        if pair[0] + pair[1] in known:
            refused.add(pair)
            continue
        known.add(pair[0] + pair[1])
        merges.append(Merge(*pair, candidates[pair]))
        for word, _ in words:
            for place in range(len(word)):
                if tuple(word[place : place + 2]) == pair:
                    word[place : place + 2] = [pair[0] + pair[1]]
    return merges


def learned(sequences: dict[tuple[str, ...], int], min_frequency: int, known: set[str], limit: int) -> list[Merge]:
    def is_new(left: str, right: str) -> bool:
        return left + right not in known

    merges = []
    for merge in itertools.islice(learn_merges(sequences, min_frequency=min_frequency, is_allowed=is_new), limit):
        known.add(merge.left + merge.right)
        merges.append(merge)
    return merges


@given(SEQUENCES, st.integers(1, 6))
def test_merges_are_those_of_the_definition(sequences: dict[tuple[str, ...], int], min_frequency: int) -> None:
    known = {"a", "b", "ab", "c"}
    assert learned(sequences, min_frequency, set(known), 12) == counted_anew(sequences, min_frequency, set(known), 12)


@given(SEQUENCES, st.randoms(use_true_random=False))
def test_the_order_of_the_sequences_does_not_matter(sequences: dict[tuple[str, ...], int], random: object) -> None:
    shuffled = list(sequences.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert learned(dict(shuffled), 1, set(), 12) == learned(sequences, 1, set(), 12)


def test_a_worked_example() -> None:
    # low x5, lower x2, newest x6, widest x3: the example of Sennrich et al. 2016
    words = {"low_": 5, "lower_": 2, "newest_": 6, "widest_": 3}
    merges = learned({tuple(word): count for word, count in words.items()}, 1, set(), 4)
    assert merges == [("e", "s", 9), ("es", "t", 9), ("est", "_", 9), ("l", "o", 7)]


def test_repeated_symbols_merge_from_the_left() -> None:
    assert learned({("a",) * 5: 1}, 1, set(), 3) == [("a", "a", 4), ("aa", "a", 1), ("aa", "aaa", 1)]
