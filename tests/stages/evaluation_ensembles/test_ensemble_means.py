"""Several distributions as one: worked numbers, and what every mean must keep."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.ensembles.means import Combination
from stages.evaluation.ensembles.options import EnsembleOptions
from stages.stage import StageError

MEANS = ("arithmetic", "geometric", "logit", "mixture")
logits = st.lists(st.lists(st.floats(-20, 20), min_size=4, max_size=4), min_size=2, max_size=4)


def combination(*weights: float, mean: str = "arithmetic") -> Combination:
    members = [f"model{number}" for number in range(len(weights))]
    return Combination.of(EnsembleOptions(members=members, weights=weights, mean=mean))


def proxied(alpha: float) -> Combination:
    return Combination.of(EnsembleOptions(proxy={"base": "a", "expert": "b", "anti": "c", "alpha": alpha}))


def logs(*rows: list[float]) -> list[torch.Tensor]:
    """One place, a member a row."""
    return [torch.tensor([row], dtype=torch.float64).log() for row in rows]


def probabilities(combined: torch.Tensor) -> list[float]:
    return combined.exp()[0].tolist()


@pytest.mark.parametrize(
    ("mean", "expected"), [("arithmetic", 0.25), ("mixture", 0.25), ("geometric", 0.2139), ("logit", 0.2139)]
)
def test_a_byte_of_a_tenth_and_of_four_tenths(mean: str, expected: float) -> None:
    # evaluation.md §6. sqrt(.1 * .4) = .2 and sqrt(.9 * .6) = .7348: .2 / .9348 = .2139.
    combined = combination(1, 1, mean=mean)(logs([0.1, 0.9], [0.4, 0.6]))
    assert probabilities(combined)[0] == pytest.approx(expected, abs=5e-5)


def test_only_the_ratio_of_weights_matters() -> None:
    rows = logs([0.1, 0.9], [0.5, 0.5])
    assert probabilities(combination(3, 1)(rows)) == pytest.approx([0.2, 0.8])
    for mean in MEANS:
        assert torch.allclose(combination(3, 1, mean=mean)(rows), combination(0.75, 0.25, mean=mean)(rows))


def test_a_mixture_follows_the_member_that_predicted_better() -> None:
    # What came before had .8 under one and .2 under the other: .8 * .1 + .2 * .4.
    evidence = torch.tensor([[0.8], [0.2]]).log()
    rows = logs([0.1, 0.9], [0.4, 0.6])
    assert probabilities(combination(1, 1, mean="mixture")(rows, evidence))[0] == pytest.approx(0.16)
    assert probabilities(combination(1, 1)(rows, evidence))[0] == pytest.approx(0.25)
    # As text of a thousand tokens has it: no underflow, and the loser is out.
    far = torch.tensor([[-5000.0], [-9000.0]])
    assert probabilities(combination(1, 1, mean="mixture")(rows, far))[0] == pytest.approx(0.1)


def test_evidence_is_of_each_place() -> None:
    rows = [torch.tensor([[0.1, 0.9]] * 2).log(), torch.tensor([[0.4, 0.6]] * 2).log()]
    evidence = torch.tensor([[0.0, -1e4], [-1e4, 0.0]])
    combined = combination(1, 1, mean="mixture")(rows, evidence)
    assert combined.exp()[:, 0].tolist() == pytest.approx([0.1, 0.4])


@given(logits)
def test_the_softmax_of_mean_logits_is_the_geometric_mean(values: list[list[float]]) -> None:
    raw = torch.tensor(values, dtype=torch.float64)
    combined = combination(*[1.0] * len(values), mean="logit")(row[None].log_softmax(-1) for row in raw)
    assert torch.allclose(combined[0], raw.mean(0).log_softmax(-1), atol=1e-9)


@given(logits, st.sampled_from(MEANS))
def test_every_mean_is_a_distribution_and_leaves_equal_members_as_they_are(
    values: list[list[float]], mean: str
) -> None:
    rows = [torch.tensor([row], dtype=torch.float64).log_softmax(-1) for row in values]
    combine = combination(*range(1, len(rows) + 1), mean=mean)
    assert float(combine(rows).exp().sum()) == pytest.approx(1)
    assert torch.allclose(combine([rows[0]] * len(rows)), rows[0], atol=1e-9)


def test_proxy_tuning_moves_the_base_by_what_training_changed() -> None:
    base, expert, anti = logs([0.5, 0.5], [0.8, 0.2], [0.4, 0.6])
    # .5 * .8 / .4 = 1 and .5 * .2 / .6 = 1 / 6; twice as far: .5 * 4 and .5 / 9.
    assert probabilities(proxied(1)([base, expert, anti])) == pytest.approx([6 / 7, 1 / 7])
    assert probabilities(proxied(2)([base, expert, anti])) == pytest.approx([2 / (2 + 1 / 18), 1 / 18 / (2 + 1 / 18)])
    assert probabilities(proxied(0)([base, expert, anti])) == [0.5, 0.5]


def test_what_is_impossible_for_some() -> None:
    rows = logs([0.5, 0.5, 0.0], [0.2, 0.0, 0.8])
    assert probabilities(combination(1, 1)(rows)) == pytest.approx([0.35, 0.25, 0.4])
    assert probabilities(combination(1, 1, mean="geometric")(rows)) == [1, 0, 0]
    with pytest.raises(StageError, match="no possible next symbol"):
        combination(1, 1, mean="geometric")(logs([1, 0], [0, 1]))
    # No ratio where the anti-expert has nothing, whatever the expert has: the base's own 1/2 against 1/4 * 2.
    base, expert, anti = logs([0.5, 0.25, 0.25], [0.5, 0.5, 0.0], [0.0, 0.25, 0.75])
    assert probabilities(proxied(1)([base, expert, anti])) == pytest.approx([0.5, 0.5, 0])
    assert not proxied(0)([base, expert, anti]).isnan().any()


def test_weights_of_many_members_add_up() -> None:
    assert math.fsum(map(math.exp, combination(1, 2, 3, 4).log_weights)) == pytest.approx(1)
