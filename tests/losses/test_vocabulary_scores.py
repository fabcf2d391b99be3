"""Group masses and entropy, against the materialised distribution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from losses.predictions import LinearHead
from losses.vocabulary_scores import vocabulary_scores

R, D, V = 7, 4, 13


def make_head() -> LinearHead:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((R, D), (V + 2, D), (V + 2,))
    )
    return LinearHead(hidden, weight, bias, softcap=3.0, scale=1.3, size=V)


def dense(head: LinearHead) -> Tensor:
    logits = 1.3 * (head.hidden @ head.weight.T + head.bias)[:, :V]
    return (3 * torch.tanh(logits / 3)).log_softmax(-1)


GROUPS = torch.stack([torch.arange(V) % 3 == 0, torch.arange(V) < 9, torch.arange(V) == 12, torch.ones(V) > 0])


@pytest.mark.parametrize("block_rows", [1, 3, None])
def test_groups_and_entropy_equal_the_dense_ones_with_their_gradients(block_rows: int | None) -> None:
    head = make_head()
    found = vocabulary_scores(head, groups=GROUPS, entropy=True, block_rows=block_rows)
    logp = dense(head)
    masses = torch.stack([logp[:, group].logsumexp(1) for group in GROUPS], dim=1)
    entropy = torch.distributions.Categorical(logits=logp).entropy()
    torch.testing.assert_close(found.group_logp, masses)
    torch.testing.assert_close(found.entropy, entropy)
    coefficients = torch.randn(R, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def combined(masses: Tensor, entropy: Tensor) -> Tensor:
        return (coefficients[:, :4] * masses).sum() + (coefficients[:, 4] * entropy).sum()

    inputs = [head.hidden, head.weight, head.bias]
    torch.testing.assert_close(
        torch.autograd.grad(combined(found.group_logp, found.entropy), inputs),
        torch.autograd.grad(combined(masses, entropy), inputs),
    )


def test_each_is_had_alone() -> None:
    head = make_head()
    groups = vocabulary_scores(head, groups=GROUPS)
    assert groups.entropy is None
    assert groups.group_logp.shape == (R, 4)
    entropy = vocabulary_scores(head, entropy=True)
    assert entropy.group_logp is None
    assert entropy.entropy.shape == (R,)


def test_a_mass_below_the_smallest_float_keeps_its_logarithm_and_gradient() -> None:
    hidden = torch.tensor([[200.0]], requires_grad=True)
    head = LinearHead(hidden, torch.tensor([[1.0], [0.0], [0.0]]))
    groups = torch.tensor([[False, True, True], [True, True, True]])
    mass = vocabulary_scores(head, groups=groups).group_logp
    torch.testing.assert_close(mass, torch.tensor([[0.6931472 - 200, 0.0]]))
    torch.testing.assert_close(torch.autograd.grad(mass[0, 0], hidden)[0], torch.tensor([[-1.0]]))


def test_a_certain_distribution_has_no_entropy() -> None:
    head = LinearHead(torch.tensor([[1e4], [0.0]]), torch.tensor([[1.0], [0.0], [-1.0]]))
    entropy = vocabulary_scores(head, entropy=True).entropy
    torch.testing.assert_close(entropy, torch.tensor([0.0, 3.0]).log().clamp(min=0))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, "asked for nothing"),
        (torch.ones(2, V + 2, dtype=torch.bool), rf"expected bool \[G, {V}\]"),
        (torch.ones(2, V), "torch.float32"),
        (torch.arange(2)[:, None] == torch.zeros(1, V), r"groups \[1\] are empty"),
    ],
)
def test_what_makes_no_sense_is_refused(groups: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vocabulary_scores(make_head(), groups=groups)
