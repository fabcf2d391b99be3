from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from losses.multilevel_ot import multilevel_ot_loss, sinkhorn_cost
from losses.predictions import LinearHead, TopKPredictions

SEQUENCE = torch.tensor([0, 0, 0, 2, 2])


def random_head(vocab: int, seed: int, rows: int = 5) -> LinearHead:
    generator = torch.Generator().manual_seed(seed)
    return LinearHead(
        torch.randn(rows, 4, generator=generator, dtype=torch.float64),
        torch.randn(vocab, 4, generator=generator, dtype=torch.float64),
    )


def literal(teacher: Tensor, student: Tensor, k: int, iterations: int) -> tuple[float, float, float]:
    """The three terms of one sequence of distributions [n, V], in plain Python."""
    kept = []
    for probs in (teacher.tolist(), student.tolist()):
        sums = [sum(column) for column in zip(*probs, strict=True)]
        rank = sorted(range(len(sums)), key=lambda token: -sums[token])[:k]
        kept.append([[row[token] for token in rank] for row in probs])
    n = len(teacher)
    cost = [[sum(abs(a - b) for a, b in zip(t, s, strict=True)) for s in kept[1]] for t in kept[0]]
    logarithmic = 0.0
    for t, s in zip(*kept, strict=True):
        logarithmic += sum(a / sum(t) * math.log((a / sum(t)) / (b / sum(s))) for a, b in zip(t, s, strict=True))
    plan = [[math.exp(-c / 0.1) for c in row] for row in cost]
    for _ in range(iterations):
        plan = [[p / sum(row) for p in row] for row in plan]
        columns = [sum(column) for column in zip(*plan, strict=True)]
        plan = [[p / column for p, column in zip(row, columns, strict=True)] for row in plan]
    moved = sum(plan[i][j] * cost[i][j] for i in range(n) for j in range(n))
    return sum(cost[i][i] for i in range(n)), logarithmic, moved


@pytest.mark.parametrize("iterations", [1, 7])
def test_the_terms_are_those_of_the_literal_definition(iterations):
    teacher, student = random_head(9, 0), random_head(7, 1)
    found = multilevel_ot_loss(
        teacher, student, SEQUENCE, 3, k=4, log_weight=0.3, sinkhorn_weight=2.0, iterations=iterations
    )
    sums = [0.0, 0.0, 0.0]
    for rows in (slice(0, 3), slice(3, 5)):
        probs = [(head.hidden[rows] @ head.weight.T).softmax(-1) for head in (teacher, student)]
        sums = [total + term for total, term in zip(sums, literal(*probs, 4, iterations), strict=True)]
    assert float(found.total) == pytest.approx(sums[0] + 0.3 * sums[1] + 2 * sums[2], rel=1e-12)
    assert found.count == 5
    for name, expected in zip(("absolute", "logarithmic", "sinkhorn"), sums, strict=True):
        assert found.metrics[name].tolist() == pytest.approx([expected, 5], rel=1e-6)


def test_gradients_are_those_of_finite_differences():
    teacher, student = random_head(9, 0), random_head(7, 1)

    def total(hidden: Tensor, weight: Tensor) -> Tensor:
        return multilevel_ot_loss(teacher, LinearHead(hidden, weight), SEQUENCE, 3, k=4, sinkhorn_weight=1.0).total

    assert torch.autograd.gradcheck(total, (student.hidden.requires_grad_(), student.weight.requires_grad_()))


def test_a_little_regularization_finds_the_best_assignment():
    """The optimal plan between sets of equal size is a permutation (Birkhoff), found here by trying all."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, 5, generator=generator).double().mul(3).softmax(-1) for _ in range(2))
    cost = torch.cdist(first, second, p=1)
    best = min(sum(float(cost[i, p]) for i, p in enumerate(order)) for order in itertools.permutations(range(4)))
    valid = torch.ones(1, 4, dtype=torch.bool)
    found = sinkhorn_cost(first[None], second[None], valid, regularization=0.05, iterations=2000)
    assert best <= float(found) + 1e-6
    assert float(found) == pytest.approx(best, rel=0.02)


def test_the_set_has_no_order_and_sequences_do_not_meet():
    generator = torch.Generator().manual_seed(0)
    sets = [torch.rand(2, 3, 5, generator=generator).double().softmax(-1) for _ in range(2)]
    valid = torch.tensor([[True, True, True], [True, True, False]])
    found = sinkhorn_cost(*sets, valid, iterations=200)
    shuffled = sinkhorn_cost(sets[0][:, [1, 0, 2]], sets[1], valid, iterations=200)
    torch.testing.assert_close(shuffled, found)
    alone = sinkhorn_cost(sets[0][1:, :2], sets[1][1:, :2], valid[1:, :2], iterations=200)
    torch.testing.assert_close(found[1:], alone)


def test_costs_as_large_as_they_get_stay_finite_in_single_precision():
    first, second = torch.eye(8)[None, :4], torch.eye(8)[None, 4:]
    second.requires_grad_()
    found = sinkhorn_cost(first, second, torch.ones(1, 4, dtype=torch.bool), regularization=0.05)
    assert found.tolist() == pytest.approx([8])
    (gradient,) = torch.autograd.grad(found.sum(), second)
    assert gradient.isfinite().all()


def test_no_more_tokens_are_kept_than_there_are():
    teacher, student = random_head(9, 0), random_head(7, 1)
    found = multilevel_ot_loss(teacher, student, SEQUENCE, 3, k=50)
    torch.testing.assert_close(found.total, multilevel_ot_loss(teacher, student, SEQUENCE, 3, k=7).total)


def test_a_truncated_teacher_is_refused():
    teacher = TopKPredictions(torch.tensor([[0, 1]]), torch.tensor([[-1.0, -2.0]]), 7)
    with pytest.raises(ValueError, match="whole distributions"):
        multilevel_ot_loss(teacher, random_head(7, 1, rows=1), torch.tensor([0]), 1)
