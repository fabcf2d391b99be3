"""CDM against sums written out token by token."""

from __future__ import annotations

import math

import pytest
import torch

from losses.cdm import TokenMatches, cdm_loss, match_in_context
from losses.predictions import LinearHead, TopKPredictions

# Teacher tokens 0 to 4, student tokens 0 to 3. Counterparts: 0-1, 1-0. Spelled alike: teacher 2 and 3 with student 3,
# teacher 2 nearer to student 2. Teacher 4 is like none.
OF_TEACHER = TokenMatches(
    torch.tensor([1, 0, -1, -1, -1]), torch.tensor([[-1, -1], [-1, -1], [2, 3], [3, -1], [-1, -1]])
)
OF_STUDENT = TokenMatches(torch.tensor([1, 0, -1, -1]), torch.tensor([[-1, -1], [-1, -1], [2, -1], [3, 2]]))
TEACHER = [0.05, 0.4, 0.3, 0.15, 0.1]
STUDENT = [0.35, 0.1, 0.15, 0.4]


def head(probabilities: list[list[float]]) -> LinearHead:
    """A head that predicts exactly these distributions."""
    logp = torch.tensor(probabilities, dtype=torch.float64).log()
    return LinearHead(logp, torch.eye(logp.shape[1], dtype=torch.float64))


def kl(teacher: list[float], student: list[float]) -> float:
    """KL of two lists of masses, each made to add up to 1."""
    total, own = sum(teacher), sum(student)
    return sum(t / total * math.log((t / total) / (s / own)) for t, s in zip(teacher, student, strict=True) if t > 0)


def test_a_counterpart_needs_no_context_and_the_nearest_in_context_is_taken():
    tokens = torch.tensor([[0, 2, 3, 4], [1, 2, 3, 4]])
    found = match_in_context(tokens, torch.tensor([[2, 3], [3, 0]]), OF_TEACHER, 4)
    assert found.tolist() == [[1, 2, 3, -1], [0, 3, 3, -1]]
    assert match_in_context(tokens, torch.tensor([[0], [1]]), OF_TEACHER, 4).tolist() == [
        [1, -1, -1, -1],
        [0, -1, -1, -1],
    ]


def test_both_directions_by_hand():
    loss = cdm_loss(head([TEACHER]), head([STUDENT]), OF_TEACHER, OF_STUDENT, top_k=3)
    # The teacher's top 3 are 1, 2, 3, the student's 3, 0, 2. Forward: 1 -> 0, 2 -> 2, 3 -> 3.
    forward = kl([0.4, 0.3, 0.15], [0.35, 0.15, 0.4])
    # Backward: 3 -> 3, 0 -> 1, 2 -> 2.
    backward = kl([0.15, 0.4, 0.3], [0.4, 0.35, 0.15])
    assert float(loss.total) == pytest.approx((forward + backward) / 2, rel=1e-12)
    loss = cdm_loss(head([TEACHER]), head([STUDENT]), OF_TEACHER, OF_STUDENT, top_k=2)
    # Top 2: 1 and 2 against 3 and 0. Forward: 1 -> 0, 2 -> 3, as student token 2 is out of context.
    # Backward: 0 -> 1; 3 -> 2, as teacher token 3 is out of context.
    expected = (kl([0.4, 0.3], [0.35, 0.4]) + kl([0.3, 0.4], [0.4, 0.35])) / 2
    assert float(loss.total) == pytest.approx(expected, rel=1e-12)
    teacher_matched, mass = loss.metrics["teacher_matched"].tolist()
    assert teacher_matched == pytest.approx(mass) == pytest.approx(0.7)


def test_tokens_that_lead_to_one_share_its_cell():
    shared = TokenMatches(OF_TEACHER.counterpart, torch.tensor([[-1], [-1], [3], [3], [-1]]))
    nothing = TokenMatches(torch.full((4,), -1), torch.full((4, 1), -1))
    loss = cdm_loss(head([TEACHER]), head([STUDENT]), shared, nothing, top_k=3)
    assert float(loss.total) == pytest.approx(kl([0.4, 0.3 + 0.15], [0.35, 0.4]) / 2, rel=1e-12)


def test_temperature_divides_both_sides():
    flat = [[math.sqrt(each) for each in row] for row in (TEACHER, STUDENT)]
    loss = cdm_loss(head([TEACHER]), head([STUDENT]), OF_TEACHER, OF_STUDENT, top_k=3, temperature=2.0)
    t, s = flat
    expected = (kl([t[1], t[2], t[3]], [s[0], s[2], s[3]]) + kl([t[3], t[1], t[2]], [s[3], s[0], s[2]])) / 2
    assert float(loss.total) == pytest.approx(expected, rel=1e-12)


def test_nothing_to_match_is_no_loss_with_a_finite_gradient():
    nothing = [TokenMatches(torch.full((size,), -1), torch.full((size, 2), -1)) for size in (5, 4)]
    student = head([STUDENT])
    hidden = student.hidden.requires_grad_()
    loss = cdm_loss(head([TEACHER]), student, *nothing, top_k=3)
    (gradient,) = torch.autograd.grad(loss.total, hidden)
    assert float(loss.total.detach()) == 0
    assert gradient.abs().max() == 0


def test_tokens_that_a_truncated_teacher_does_not_know_are_no_cells():
    known = TopKPredictions(torch.tensor([[1, 2]]), torch.tensor([[0.4, 0.3]], dtype=torch.float64).log(), 5)
    loss = cdm_loss(known, head([STUDENT]), OF_TEACHER, OF_STUDENT, top_k=4)
    # Forward: 1 -> 0, 2 -> 2. Backward: of the student's four tokens 0 -> 1 and 2 -> 2 are known to the teacher.
    expected = (kl([0.4, 0.3], [0.35, 0.15]) + kl([0.4, 0.3], [0.35, 0.15])) / 2
    assert float(loss.total) == pytest.approx(expected, rel=1e-12)
