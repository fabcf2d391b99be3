"""MinED against sums written out token by token."""

from __future__ import annotations

import math

import pytest
import torch

from losses.mined import mined_loss
from losses.predictions import LinearHead, TopKPredictions


def head(logits: list[list[float]]) -> LinearHead:
    """A head with exactly these logits."""
    hidden = torch.tensor(logits, dtype=torch.float64)
    return LinearHead(hidden, torch.eye(hidden.shape[1], dtype=torch.float64))


def softmax(numbers: list[float]) -> list[float]:
    powers = [math.exp(number) for number in numbers]
    return [power / sum(powers) for power in powers]


def kl(teacher: list[float], student: list[float]) -> float:
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True) if t > 0)


TEACHER = [[1.0, -0.5, 2.0], [0.0, 0.3, -1.0]]
STUDENT = [[0.2, 1.0, -0.3, 0.7], [1.5, -0.2, 0.1, 0.0]]
NEAREST = [2, 0, 2, -1]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_gathered_by_the_map_and_normalised(temperature):
    loss = mined_loss(head(TEACHER), head(STUDENT), torch.tensor(NEAREST), temperature=temperature)
    expected = 0.0
    for z, own in zip(TEACHER, STUDENT, strict=True):
        # Two student tokens have teacher token 2; the fourth has none and is left out.
        target = softmax([z[2] / temperature, z[0] / temperature, z[2] / temperature])
        expected += kl(target, softmax([each / temperature for each in own[:3]]))
    assert float(loss.total) == pytest.approx(expected, rel=1e-12)
    assert int(loss.count) == 2
    mapped, mass = loss.metrics["mapped"].tolist()
    assert mapped == pytest.approx(sum(softmax(z)[0] + softmax(z)[2] for z in TEACHER))
    assert mass == pytest.approx(2)


def test_equal_vocabularies_and_models_have_no_loss():
    loss = mined_loss(head(TEACHER), head(TEACHER), torch.arange(3))
    assert float(loss.total) == pytest.approx(0, abs=1e-12)


def test_unknown_tokens_of_a_truncated_teacher_have_no_probability():
    known = TopKPredictions(torch.tensor([[2, 1]]), torch.tensor([[0.5, 0.3]], dtype=torch.float64).log(), 3)
    loss = mined_loss(known, head(STUDENT[:1]), torch.tensor([2, 1, 0, -1]), temperature=1.0)
    assert float(loss.total) == pytest.approx(kl([0.625, 0.375, 0], softmax(STUDENT[0][:3])), rel=1e-12)


def test_a_teacher_that_knows_no_mapped_token_is_no_loss():
    known = TopKPredictions(torch.tensor([[1]]), torch.tensor([[0.5]], dtype=torch.float64).log(), 3)
    student = head(STUDENT[:1])
    hidden = student.hidden.requires_grad_()
    loss = mined_loss(known, student, torch.tensor(NEAREST))
    (gradient,) = torch.autograd.grad(loss.total, hidden)
    assert float(loss.total.detach()) == 0
    assert gradient.abs().max() == 0
