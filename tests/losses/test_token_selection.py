"""Token selection: the worked numbers of the specification, ties and rounding, chunks of two tokenizations."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from losses.chunks import AlignedScores
from losses.token_selection import best_of_each, improvement, kept_units, selected_cross_entropy, selection_scores

HISTORY = torch.tensor([2.0, 1.0, 3.0, 0.5, 1.5], dtype=torch.float64)
CURRENT = torch.tensor([1.0, 1.0, 1.0, 0.6, 1.2], dtype=torch.float64)
ATTENTION = torch.tensor([0.9, 0.2, 0.1, 0.6, 0.5], dtype=torch.float64)
ONE_RESPONSE = torch.zeros(5, dtype=torch.long)


def test_improvement_is_positive_where_the_model_got_better() -> None:
    assert improvement(HISTORY, CURRENT).tolist() == pytest.approx([1, 0, 2, -0.1, 0.3])


def test_the_worked_example() -> None:
    """evaluation.md §12, all of its numbers."""
    improved = improvement(HISTORY, CURRENT)
    expected = [0.523810, 0.047619, 1, 0, 0.190476]
    assert selection_scores(improved, ONE_RESPONSE).tolist() == pytest.approx(expected, abs=1e-6)
    scores = selection_scores(improved, ONE_RESPONSE, ATTENTION, improvement_weight=0.5)
    assert scores.tolist() == pytest.approx([0.711905, 0.123810, 0.55, 0.3, 0.345238], abs=1e-6)
    kept = best_of_each(scores, ONE_RESPONSE, 0.6)
    assert kept.tolist() == [True, False, True, False, True]
    assert float(CURRENT[kept].mean()) == pytest.approx(1.0667, abs=1e-4)
    assert float(CURRENT.mean()) == pytest.approx(0.96)


def test_a_share_that_floats_cannot_hold_is_not_rounded_up_for_it() -> None:
    """100 * 0.55 and 25 * 0.28 are a little above 55 and 7 in floats; of them the paper's code makes 56 and 8."""
    assert math.ceil(100 * 0.55) == 56
    assert math.ceil(25 * 0.28) == 8
    assert int(kept_units(0.55, torch.tensor(100))) == 55
    assert int(kept_units(0.28, torch.tensor(25))) == 7


@given(hundredths=st.integers(1, 100), units=st.integers(0, 100_000))
def test_as_many_are_kept_as_exact_arithmetic_says(hundredths: int, units: int) -> None:
    expected = math.ceil(Fraction(hundredths, 100) * units)
    assert int(kept_units(hundredths / 100, torch.tensor(units))) == expected


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), max_size=40),
    st.sampled_from([0.05, 0.28, 0.55, 0.6, 1.0]),
)
def test_the_best_of_every_response_are_kept_and_of_equal_ones_the_first(units, share) -> None:
    response = torch.tensor([number for number, _ in units], dtype=torch.long)
    scores = torch.tensor([float(score) for _, score in units])
    expected = set()
    for number in {number for number, _ in units}:
        own = [index for index, (owner, _) in enumerate(units) if owner == number]
        best = sorted(own, key=lambda index: (-units[index][1], index))
        expected |= set(best[: math.ceil(Fraction(str(share)) * len(own))])
    assert set(best_of_each(scores, response, share).nonzero().flatten().tolist()) == expected


def test_each_response_is_brought_to_its_own_range() -> None:
    improved = torch.tensor([0.0, 1.0, 100.0, 300.0, 7.0], dtype=torch.float64)
    scores = selection_scores(improved, torch.tensor([0, 0, 1, 1, 2]))
    assert scores.tolist() == pytest.approx([0, 1, 0, 1, 0], abs=1e-6)


def _sides() -> tuple[AlignedScores, AlignedScores, torch.Tensor]:
    """Four chunks of one text in which chunk 1 is one token of the history's and three of the student's."""
    history = AlignedScores(
        torch.tensor([[0.0, -2.0, -3.0, -1.0, -5.0]], dtype=torch.float64),
        None,
        torch.tensor([[False, True, True, True, True]]),
        torch.tensor([[-1, 0, 1, 2, 3]]),
    )
    current = AlignedScores(
        torch.tensor([[0.0, -1.5, -0.5, -0.25, -0.25, -1.25, -9.0]], dtype=torch.float64, requires_grad=True),
        None,
        torch.tensor([[False, True, True, True, True, True, True]]),
        torch.tensor([[-1, 0, 1, 1, 1, 2, 3]]),
    )
    return history, current, torch.zeros(1, 7, dtype=torch.long)


def test_chunks_are_compared_and_learned_whole() -> None:
    """Improvements 0.5, 2, -0.25 and -4: half of four keeps chunks 0 and 1, with all of their tokens."""
    history, current, window = _sides()
    output = selected_cross_entropy(history, current, window, 4, share=0.5)
    assert (float(output.total.detach()), int(output.count)) == (2.5, 2)
    (gradient,) = torch.autograd.grad(output.total, current.label_logp)
    assert gradient.tolist() == [[0, -1, -1, -1, -1, 0, 0]]
    values = {name: float(pair[0] / pair[1]) for name, pair in output.metrics.items()}
    assert values == {
        "token_coverage": pytest.approx(4 / 6),
        "improvement": pytest.approx(-1.75 / 4),
        "kept_improvement": pytest.approx(1.25),
        "improved_share": 0.5,
    }


def test_with_everything_kept_it_is_the_whole_texts_loss() -> None:
    history, current, window = _sides()
    output = selected_cross_entropy(history, current, window, 4, share=1.0)
    assert (float(output.total.detach()), int(output.count)) == (12.75, 4)


def test_a_chunk_that_one_side_has_no_score_for_is_not_chosen_from() -> None:
    history, current, window = _sides()
    unscored = history._replace(scored=torch.tensor([[False, True, False, True, True]]))
    output = selected_cross_entropy(unscored, current, window, 4, share=0.6)
    assert (float(output.total.detach()), int(output.count)) == (2.75, 2)  # chunks 0 and 2 of the three others


def test_nothing_to_compare_is_no_unit() -> None:
    history, current, window = _sides()
    nothing = history._replace(scored=torch.zeros_like(history.scored))
    output = selected_cross_entropy(nothing, current, window, 4, share=0.6)
    assert (float(output.total.detach()), int(output.count)) == (0, 0)
