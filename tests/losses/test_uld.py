from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from losses.predictions import LinearHead, TopKPredictions
from losses.uld import sorted_distance, uld_loss


def head_of(*rows: list[float]) -> LinearHead:
    """A head whose distributions are ``rows``."""
    return LinearHead(torch.tensor(rows, dtype=torch.float64).log(), torch.eye(len(rows[0]), dtype=torch.float64))


def random_head(rows: int, vocab: int, seed: int, **options) -> LinearHead:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (rows, vocab))
    return LinearHead(hidden, weight, **options)


def literal(teacher: list[float], student: list[float]) -> float:
    """The paper's definition, one row, in plain Python."""
    length = max(len(teacher), len(student))
    first, second = (sorted(row, reverse=True) + [0.0] * (length - len(row)) for row in (teacher, student))
    return sum(abs(t - s) for t, s in zip(first, second, strict=True))


def test_worked_vector_12():
    """specs/distillation_losses.md §6: two certain predictions do not differ, whatever they predict."""
    assert float(uld_loss(head_of([1, 1e-300, 1e-300]), head_of([1e-300, 1e-300, 1])).total) == pytest.approx(0)
    found = uld_loss(head_of([0.5, 0.5]), head_of([0.7, 0.2, 0.1]))
    assert float(found.total) == pytest.approx(0.6, abs=1e-12)
    assert found.count == 1


masses = st.lists(st.floats(1e-3, 1), min_size=1, max_size=6)


@given(masses, masses)
def test_the_sum_of_rows_is_that_of_the_literal_definition(first, second):
    teacher, student = ([x / sum(row) for x in row] for row in (first, second))
    found = uld_loss(head_of(teacher, teacher[::-1]), head_of(student, student))
    assert float(found.total) == pytest.approx(2 * literal(teacher, student), abs=1e-9)
    assert found.count == 2


@given(masses, masses, st.integers(1, 8))
def test_truncation_is_below_the_exact_distance_by_no_more_than_it_says(first, second, top_k):
    teacher, student = ([x / sum(row) for x in row] for row in (first, second))
    rows = [torch.tensor([row], dtype=torch.float64) for row in (teacher, student)]
    distance, slack = sorted_distance(*rows, top_k)
    exact = literal(teacher, student)
    assert float(distance) - 1e-9 <= exact <= float(distance + slack) + 1e-9
    if top_k >= max(len(teacher), len(student)):
        assert float(distance) == pytest.approx(exact, abs=1e-9)


def test_the_order_of_either_vocabulary_does_not_matter():
    teacher, student = random_head(4, 7, 0), random_head(4, 9, 1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    shuffled = LinearHead(student.hidden, student.weight[order])
    torch.testing.assert_close(uld_loss(teacher, student).total, uld_loss(teacher, shuffled).total)


@pytest.mark.parametrize("top_k", [None, 3])
def test_gradients_are_those_of_finite_differences(top_k):
    teacher, student = random_head(3, 9, 0), random_head(3, 7, 1, softcap=5.0, scale=0.5, size=6)

    def total(hidden: Tensor, weight: Tensor) -> Tensor:
        return uld_loss(teacher, LinearHead(hidden, weight, softcap=5.0, scale=0.5, size=6), top_k=top_k).total

    assert torch.autograd.gradcheck(total, (student.hidden.requires_grad_(), student.weight.requires_grad_()))


def test_the_teacher_gets_no_gradient():
    teacher, student = random_head(3, 9, 0), random_head(3, 7, 1)
    for tensor in (teacher.hidden, teacher.weight, student.hidden):
        tensor.requires_grad_()
    uld_loss(teacher, student).total.backward()
    assert teacher.hidden.grad is None
    assert teacher.weight.grad is None
    assert student.hidden.grad.abs().max() > 0


def test_the_truncation_is_reported():
    output = uld_loss(head_of([0.5, 0.3, 0.2]), head_of([0.6, 0.3, 0.1]), top_k=1)
    assert float(output.total) == pytest.approx(0.2)
    assert output.metrics["truncation"].tolist() == pytest.approx([0.8, 1])


def test_a_truncated_teacher_is_refused():
    teacher = TopKPredictions(torch.tensor([[0, 1]]), torch.tensor([[-1.0, -2.0]]), 7)
    with pytest.raises(ValueError, match="whole distributions"):
        uld_loss(teacher, random_head(1, 7, 1))
