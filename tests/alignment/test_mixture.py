"""Mixtures inferred from orders of merges: worked intervals, and an oracle that states the whole program at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from alignment.merge_replay import count_pairs
from alignment.mixture import Category, MixtureError, _IntervalMaximum, infer_mixture

X = {tuple("ab"): 6, tuple("cd"): 3, tuple("ef"): 1}
Y = {tuple("ab"): 1, tuple("cd"): 5, tuple("ef"): 4}
AB, CD, EF = tuple("ab"), tuple("cd"), tuple("ef")


def _near(found, low, high):
    return (found.low, found.high) == (pytest.approx(low, abs=1e-8), pytest.approx(high, abs=1e-8))


def test_the_worked_interval():
    # evaluation.md §11: cd before ab wants α_X <= 4/7, ab before ef wants α_X >= 3/8.
    found = infer_mixture([CD, AB, EF], {"X": Category(X, 20), "Y": Category(Y, 20)})
    assert found.slack == found.slack_bound == 0
    assert _near(found.pairs["X"], 3 / 8, 4 / 7)
    assert _near(found.pairs["Y"], 3 / 7, 5 / 8)
    assert found.pairs["X"].low <= found.pairs["X"].estimate <= found.pairs["X"].high
    assert found.bytes == found.pairs, "there are as many bytes a pair in both"
    assert (found.merges, found.contradicted, found.left_out) == (3, 0, 0)


def test_bytes_follow_from_pairs():
    # Y has twice the bytes a pair: α_X -> α_X / (α_X + 2 (1 - α_X)).
    found = infer_mixture([CD, AB, EF], {"X": Category(X, 20), "Y": Category(Y, 40)})
    assert _near(found.pairs["X"], 3 / 8, 4 / 7)
    assert _near(found.bytes["X"], (3 / 8) / (3 / 8 + 2 * 5 / 8), (4 / 7) / (4 / 7 + 2 * 3 / 7))


def test_an_order_that_no_mixture_explains_needs_slack():
    # ef before ab wants α_X <= 3/8; ef before cd wants 2 α_X + (1 - α_X) <= 0, which nothing gives.
    found = infer_mixture([EF, AB, CD], {"X": Category(X, 20), "Y": Category(Y, 20)})
    assert found.slack == pytest.approx(0.1375, abs=1e-9)
    assert _near(found.pairs["X"], 3 / 8, 3 / 8)
    assert found.contradicted == 2


def test_the_same_text_twice_tells_nothing():
    found = infer_mixture([AB, CD, EF], {"X": Category(X, 20), "Z": Category(X, 20)})
    assert _near(found.pairs["X"], 0, 1)
    assert found.slack == 0


def test_merges_that_occur_nowhere_are_left_out_and_counted():
    found = infer_mixture([("q", "q"), CD, AB, EF], {"X": Category(X, 20), "Y": Category(Y, 20)})
    assert (found.merges, found.left_out, found.slack) == (3, 1, 0)
    assert _near(found.pairs["X"], 3 / 8, 4 / 7)


def test_only_the_first_merges_are_used():
    found = infer_mixture([CD, AB, EF], {"X": Category(X, 20), "Y": Category(Y, 20)}, max_merges=1)
    assert found.merges == 1
    assert _near(found.pairs["X"], 0, 4 / 7)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ({"X": Category(X, 20)}, "at least two"),
        ({"X": Category(X, 20), "E": Category({("a",): 3}, 3)}, "sample of E has no two symbols"),
        ({"A": Category({tuple("xy"): 1}, 2), "B": Category({tuple("yz"): 1}, 2)}, "no merge of the tokenizer occurs"),
    ],
)
def test_samples_that_cannot_tell_are_refused(categories, message):
    with pytest.raises(MixtureError, match=message):
        infer_mixture([CD, AB, EF], categories)


_words = st.dictionaries(st.text("abcd", min_size=2, max_size=5).map(tuple), st.integers(1, 20), min_size=3, max_size=8)


def _dense(merges, categories):
    """Least slack and range of the first share, with every constraint written down from the start."""
    counts = count_pairs(merges, categories)
    scale = 1 / counts.totals
    rows = [
        (step, segment)
        for step in range(len(merges))
        for segment in range(len(counts.pair))
        if counts.start[segment] <= step < counts.end[segment] and counts.merged[step].any()
    ]
    if not rows:
        return 0.0, 0.0, 1.0
    size, pairs = len(categories), int(counts.pair.max()) + 1
    matrix = np.zeros((len(rows), size + len(merges) + pairs))
    for row, (step, segment) in enumerate(rows):
        matrix[row, :size] = (counts.counts[segment] - counts.merged[step]) * scale
        matrix[row, size + step] = matrix[row, size + len(merges) + counts.pair[segment]] = -1
    one = np.zeros((1, matrix.shape[1]))
    one[0, :size] = 1
    slack = (1 - one)[0]
    least = linprog(slack, matrix, np.zeros(len(rows)), one, [1.0], method="highs").fun
    bounded = np.vstack([matrix, slack])
    limits = np.append(np.zeros(len(rows)), least + 1e-9)
    share = np.eye(1, matrix.shape[1])[0]
    low = linprog(share, bounded, limits, one, [1.0], method="highs").fun
    high = -linprog(-share, bounded, limits, one, [1.0], method="highs").fun
    return least, low, high


@settings(max_examples=25, deadline=None)
@given(_words, _words, st.permutations([("a", "b"), ("b", "c"), ("c", "d"), ("d", "a"), ("ab", "c"), ("a", "a")]))
def test_constraints_found_one_by_one_give_what_all_of_them_give(first, second, merges):
    totals = count_pairs(merges, [first, second])
    if not totals.merged.any():
        return
    found = infer_mixture(merges, {"X": Category(first, 9), "Y": Category(second, 9)})
    least, low, high = _dense(merges, [first, second])
    assert found.slack <= least + 1e-7
    assert found.slack_bound >= least - 1e-7
    if found.slack_bound - found.slack < 1e-9:
        assert found.slack == pytest.approx(least, abs=1e-7)
        assert found.pairs["X"].low == pytest.approx(low, abs=1e-5)
        assert found.pairs["X"].high == pytest.approx(high, abs=1e-5)


@given(
    st.integers(1, 20).flatmap(
        lambda steps: st.tuples(
            st.just(steps),
            st.lists(st.tuples(st.integers(0, steps - 1), st.integers(1, steps), st.integers(-5, 5)), max_size=12),
        )
    )
)
def test_the_greatest_of_the_segments_at_every_step(case):
    steps, drawn = case
    segments = [(start, min(start + length, steps), value) for start, length, value in drawn]
    starts, ends, values = (np.array([part[index] for part in segments], dtype=np.int64) for index in range(3))
    best = _IntervalMaximum(starts, ends, steps).of(values.astype(np.float64))
    for step in range(steps):
        here = [value for start, end, value in segments if start <= step < end]
        assert (best[step] < 0) == (not here)
        if here:
            chosen = segments[best[step]]
            assert chosen[0] <= step < chosen[1]
            assert chosen[2] == max(here)
