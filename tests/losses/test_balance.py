from __future__ import annotations

import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from losses.balance import Balancer, GradMag, GradNorm, PCGrad, gradmag_weights, gradnorm_slopes, pcgrad_weights

BALANCERS = (GradMag, GradNorm, PCGrad)


def _gram(*gradients: tuple[float, ...]) -> Tensor:
    rows = torch.tensor(gradients, dtype=torch.float64)
    return rows @ rows.t()


def _losses(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_worked_numbers() -> None:
    gradients = torch.tensor([[3.0, 4.0], [0.0, 0.5]], dtype=torch.float64)
    squared_norms = gradients.square().sum(1)
    assert gradmag_weights(squared_norms, preserve_magnitude=False).tolist() == pytest.approx([0.2, 2.0])
    weights = gradmag_weights(squared_norms)
    assert weights.tolist() == pytest.approx([0.0909, 0.9091], abs=5e-5)
    assert (weights @ gradients).tolist() == pytest.approx([0.27273, 0.81818], abs=5e-6)


def test_a_gradient_that_vanishes_counts_as_none() -> None:
    # A chunk probability of e^-500 leaves a gradient that is above 0 in name only.
    squared_norms = torch.tensor([1e-68, 4e-5, 9e-8], dtype=torch.float64)
    weights = gradmag_weights(squared_norms)
    assert weights[0] == 0
    assert weights[1:].tolist() == pytest.approx(gradmag_weights(squared_norms[1:]).tolist())


def test_weighted_gradients_have_equal_norms_whatever_their_scale() -> None:
    norms = torch.tensor([1e-3, 1.0, 700.0])
    weights = gradmag_weights(norms.square())
    pulls = weights * norms
    assert weights.sum().item() == pytest.approx(1)
    assert pulls.tolist() == pytest.approx([pulls[0].item()] * 3, rel=1e-4)


def test_a_loss_without_gradient_does_not_silence_the_others() -> None:
    assert gradmag_weights(torch.tensor([0.0, 4.0])).tolist() == pytest.approx([0, 1])
    assert gradmag_weights(torch.zeros(2)).tolist() == [0, 0]


def test_gradmag_keeps_the_last_weight_of_a_loss_that_had_nothing_to_compare() -> None:
    balancer = GradMag()
    both, first_alone = torch.tensor([True, True]), torch.tensor([True, False])
    assert balancer.weights(_gram((4.0, 0.0), (0.0, 1.0)), _losses(1, 1), both).tolist() == pytest.approx([0.2, 0.8])
    # The gradient of norm 1 that the second loss had last still counts, beside whatever the first one's is now.
    for norm, expected in ((4.0, [0.2, 0.8]), (1.0, [0.5, 0.5]), (3.0, [0.25, 0.75])):
        found = balancer.weights(_gram((norm, 0.0), (0.0, 0.0)), _losses(1, 0), first_alone)
        assert found.tolist() == pytest.approx(expected)
    # One that compared something and has no gradient has no weight, as ever.
    assert balancer.weights(_gram((1.0, 0.0), (0.0, 0.0)), _losses(1, 0), both).tolist() == pytest.approx([1, 0])


def test_gradnorm_counts_nothing_of_a_loss_before_its_first_step() -> None:
    balancer = GradNorm(alpha=1.0)
    for _ in range(5):
        found = balancer.weights(_gram((1.0, 0.0), (0.0, 0.0)), _losses(3, 0), torch.tensor([True, False]))
        assert found.tolist() == [1, 1]
    # Its first value is 4, so both losses have made the same progress (none), and the larger gradient is pulled down:
    # by Adam's first step here, and up by its sixth, after five slopes of 0, there.
    found = balancer.weights(_gram((1.0, 0.0), (0.0, 2.0)), _losses(3, 4), torch.tensor([True, True]))
    sixth = (0.1 / (1 - 0.9**6)) / (0.001 / (1 - 0.999**6)) ** 0.5
    assert (found[0] / found[1]).item() == pytest.approx((1 + 0.025 * sixth) / (1 - 0.025), rel=1e-6)


def test_gradnorm_leaves_losses_alone_that_had_nothing_to_compare() -> None:
    balancer = GradNorm()
    gradients = ((1.0, 0.0), (0.0, 2.0), (0.5, 0.5))
    for _ in range(3):
        before = balancer.weights(_gram(*gradients), _losses(1, 2, 3))
    first_alone = torch.tensor([True, False, False])
    for _ in range(4):
        found = balancer.weights(_gram((1.0, 0.0), (0.0, 0.0), (0.0, 0.0)), _losses(1, 0, 0), first_alone)
    assert (found[1] / found[2]).item() == pytest.approx((before[1] / before[2]).item(), rel=1e-12)
    assert found.sum().item() == pytest.approx(3)


def test_gradnorm_slopes_are_those_of_the_papers_objective() -> None:
    weights = torch.tensor([1.5, 0.7, 0.8], dtype=torch.float64, requires_grad=True)
    norms = torch.tensor([2.0, 5.0, 0.3], dtype=torch.float64)
    progress = torch.tensor([0.5, 0.9, 0.2], dtype=torch.float64)
    pulls = weights * norms
    targets = pulls.mean().detach() * (progress / progress.mean()) ** 0.12
    (expected,) = torch.autograd.grad((pulls - targets).abs().sum(), weights)
    torch.testing.assert_close(gradnorm_slopes(weights.detach(), norms, progress, 0.12), expected)


def test_gradnorm_takes_the_step_of_adam_and_keeps_the_sum() -> None:
    # Adam's first step is the learning rate against the slope's sign: 1 - 0.025 and 1 + 0.025, which add up to 2.
    found = GradNorm().weights(_gram((4.0, 0.0), (0.0, 1.0)), _losses(3, 3))
    assert found.tolist() == pytest.approx([0.975, 1.025], rel=1e-6)


def test_gradnorm_follows_adam_for_many_steps() -> None:
    balancer = GradNorm()
    parameter = torch.ones(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([parameter], lr=2.5e-2)
    draw = random.Random(1)
    first = _losses(2.0, 1.0, 4.0)
    for step in range(20):
        norms = torch.tensor([draw.uniform(0.5, 4.0) for _ in range(3)], dtype=torch.float64)
        losses = first * torch.tensor([draw.uniform(0.5, 1.0) for _ in range(3)]) if step else first
        parameter.grad = gradnorm_slopes(parameter.detach(), norms, losses / first, 0.12)
        adam.step()
        with torch.no_grad():
            parameter *= 3 / parameter.sum()
        found = balancer.weights(norms.square().diag(), losses)
        torch.testing.assert_close(found, parameter.detach(), rtol=1e-6, atol=1e-8)


def test_gradnorm_brings_gradients_to_one_norm_and_favours_a_loss_that_lags() -> None:
    norms = torch.tensor([1.0, 3.0], dtype=torch.float64)

    def pulls_after(steps: int, last: Tensor) -> list[float]:
        balancer = GradNorm(alpha=1.0)
        balancer.weights(norms.square().diag(), _losses(1, 1))
        for _ in range(steps):
            weights = balancer.weights(norms.square().diag(), last)
        return (weights * norms).tolist()

    left, right = pulls_after(400, _losses(1, 1))
    assert left == pytest.approx(right, rel=0.1)
    left, right = pulls_after(400, _losses(0.5, 1))
    assert right / left == pytest.approx(2, rel=0.1)


def test_gradnorm_weights_stay_positive() -> None:
    balancer = GradNorm(learning_rate=0.5)
    for _ in range(20):
        weights = balancer.weights(_gram((100.0, 0.0), (0.0, 1.0)), _losses(1, 1))
        assert weights.min() > 0
        assert weights.sum().item() == pytest.approx(2)


def test_a_loss_without_gradient_neither_moves_nor_weighs_in_gradnorms_mean() -> None:
    with_idle, without = GradNorm(), GradNorm()
    for _ in range(5):
        found = with_idle.weights(_gram((2.0, 0.0), (0.0, 0.0), (0.0, 1.0)), _losses(1, 1, 1))
        expected = without.weights(_gram((2.0, 0.0), (0.0, 1.0)), _losses(1, 1))
        torch.testing.assert_close(found[[0, 2]], expected)
        assert found[1].item() == pytest.approx(1)


def test_pcgrad_worked_example() -> None:
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    weights = pcgrad_weights(gradients @ gradients.t(), [[1], [0]])
    # (0.5, 0.5) + (0, 1)
    assert (weights @ gradients).tolist() == pytest.approx([0.5, 1.5])
    assert weights.tolist() == pytest.approx([2.0, 1.5])


def test_pcgrad_leaves_gradients_alone_that_do_not_conflict() -> None:
    assert PCGrad().weights(_gram((1.0, 0.0), (1.0, 2.0), (0.0, 3.0)), _losses(1, 1, 1)).tolist() == [1, 1, 1]


@given(st.integers(1, 5), st.integers(0, 10**6))
def test_pcgrad_is_the_projection_of_the_gradients_themselves(number: int, seed: int) -> None:
    draw = random.Random(seed)
    gradients = torch.randn(number, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orders = [draw.sample([j for j in range(number) if j != i], number - 1) for i in range(number)]
    expected = torch.zeros(3, dtype=torch.float64)
    for own, order in enumerate(orders):
        projected = gradients[own].clone()
        for other in order:
            inner = projected @ gradients[other]
            if inner < 0:
                projected -= inner / gradients[other].square().sum() * gradients[other]
        expected += projected
    weights = pcgrad_weights(gradients @ gradients.t(), orders)
    torch.testing.assert_close(weights @ gradients, expected, rtol=1e-7, atol=1e-9)


def test_pcgrad_draws_another_order_at_every_step_and_the_same_in_every_run() -> None:
    gram = _gram((1.0, 0.0, 0.1), (-1.0, 1.0, 0.0), (-0.5, -1.0, 0.3), (0.2, -1.0, -1.0))
    losses = _losses(1, 1, 1, 1)
    first, again, other = PCGrad(seed=1), PCGrad(seed=1), PCGrad(seed=2)
    run = [first.weights(gram, losses).tolist() for _ in range(8)]
    assert run == [again.weights(gram, losses).tolist() for _ in range(8)]
    assert run != [other.weights(gram, losses).tolist() for _ in range(8)]
    assert any(weights != run[0] for weights in run)


@pytest.mark.parametrize("kind", BALANCERS)
def test_one_loss_keeps_its_weight(kind: type[Balancer]) -> None:
    balancer = kind()
    for _ in range(3):
        assert balancer.weights(_gram((3.0, 4.0)), _losses(2)).tolist() == pytest.approx([1])


@pytest.mark.parametrize("kind", BALANCERS)
def test_no_gradient_at_all_gives_finite_weights(kind: type[Balancer]) -> None:
    balancer = kind()
    for _ in range(3):
        assert balancer.weights(torch.zeros(2, 2, dtype=torch.float64), _losses(0, 0)).isfinite().all()


@pytest.mark.parametrize("kind", BALANCERS)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused(kind: type[Balancer], broken: float) -> None:
    gram = torch.eye(2, dtype=torch.float64)
    gram[1, 1] = broken
    with pytest.raises(ValueError, match="loss 1 of 2 or its gradient is not finite"):
        kind().weights(gram, _losses(1, 1))
    with pytest.raises(ValueError, match="loss 0 of 2 or its gradient is not finite"):
        kind().weights(torch.eye(2, dtype=torch.float64), _losses(broken, 1))


@pytest.mark.parametrize("kind", BALANCERS)
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_restored_balancer_goes_on_exactly(kind: type[Balancer], stop: int) -> None:
    draw = torch.Generator().manual_seed(5)
    steps = []
    for _ in range(12):
        gradients = torch.randn(3, 4, generator=draw, dtype=torch.float64)
        present = torch.rand(3, generator=draw) < 0.7
        gradients *= present[:, None]
        values = torch.rand(3, generator=draw, dtype=torch.float64) * present
        steps.append((gradients @ gradients.t(), values, present))
    straight, stopped = kind(), kind()
    expected = [straight.weights(*step).tolist() for step in steps]
    found = [stopped.weights(*step).tolist() for step in steps[:stop]]
    resumed = kind()
    resumed.restore(json.loads(json.dumps(stopped.state())))
    assert found + [resumed.weights(*step).tolist() for step in steps[stop:]] == expected
