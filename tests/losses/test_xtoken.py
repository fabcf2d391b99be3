"""X-Token against sums written out token by token."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.predictions import LinearHead, TopKPredictions
from losses.xtoken import ChunkTokens, ProjectionEntries, hybrid_loss, projected_kl_loss

LOSSES = {"p_kl": projected_kl_loss, "h_kl": hybrid_loss}


def head(probabilities: list[list[float]]) -> LinearHead:
    """A head that predicts exactly these distributions: hidden states are log-probabilities, the weight is I."""
    logp = torch.tensor(probabilities, dtype=torch.float64).log()
    return LinearHead(logp, torch.eye(logp.shape[1], dtype=torch.float64))


def entries(matrix: list[list[float]]) -> ProjectionEntries:
    """A dense matrix as entries, rows ordered by descending weight."""
    rows = [
        (student, teacher, weight)
        for student, row in enumerate(matrix)
        for teacher, weight in sorted(enumerate(row), key=lambda entry: -entry[1])
        if weight > 0
    ]
    student, teacher, weight = zip(*rows, strict=True)
    return ProjectionEntries(torch.tensor(student), torch.tensor(teacher), torch.tensor(weight, dtype=torch.float64))


def chunk_tokens(teacher: list[int], student: list[int], teacher_rest=None, student_rest=None) -> ChunkTokens:
    """Chunks given by their first tokens, and by the probability of the rest of each, 1 by default."""
    rests = (
        torch.tensor(rest or [1.0] * len(teacher), dtype=torch.float64).log() for rest in (teacher_rest, student_rest)
    )
    return ChunkTokens(torch.tensor(teacher), torch.tensor(student), *rests)


def kl(teacher: list[float], student: list[float]) -> float:
    """KL of two lists of masses, each made to add up to 1."""
    total, own = sum(teacher), sum(student)
    return sum(t / total * math.log((t / total) / (s / own)) for t, s in zip(teacher, student, strict=True) if t > 0)


def literal_p_kl(q, p, matrix, a, b, teacher_rest, student_rest, top_k, missing=0.0) -> float:
    """P-KL of one position, cell by cell."""
    chunk = q[a] * teacher_rest, p[b] * student_rest
    q = [mass - chunk[0] * (token == a) for token, mass in enumerate(q)]
    p = [mass - chunk[1] * (token == b) for token, mass in enumerate(p)]
    projected = [sum(p[s] * matrix[s][t] for s in range(len(p))) for t in range(len(q))]
    reached = [t for t in range(len(q)) if any(row[t] > 0 for row in matrix)]
    largest = sorted(reached, key=lambda t: -q[t])[:top_k]
    others = [t for t in reached if t not in largest]
    return kl(
        [*(q[t] for t in largest), chunk[0], sum(q[t] for t in others) + missing],
        [*(projected[t] for t in largest), chunk[1], sum(projected[t] for t in others)],
    )


MATRIX = [[1, 0, 0, 0, 0], [0, 0.9, 0.1, 0, 0], [0, 0.3, 0, 0.7, 0], [0, 0, 0, 0, 0]]
TEACHER = [[0.4, 0.3, 0.15, 0.1, 0.05], [0.12, 0.09, 0.19, 0.2, 0.4]]
STUDENT = [[0.3, 0.4, 0.2, 0.1], [0.25, 0.15, 0.35, 0.25]]
RESTS = {"teacher_rest": [1.0, 0.6], "student_rest": [1.0, 0.3]}


@pytest.mark.parametrize("top_k", [1, 2, 100])
def test_p_kl_is_the_divergence_of_all_cells(top_k):
    loss = projected_kl_loss(
        head(TEACHER), head(STUDENT), entries(MATRIX), chunk_tokens([0, 3], [0, 2], **RESTS), top_k=top_k
    )
    expected = [
        literal_p_kl(TEACHER[0], STUDENT[0], MATRIX, 0, 0, 1.0, 1.0, top_k),
        literal_p_kl(TEACHER[1], STUDENT[1], MATRIX, 3, 2, 0.6, 0.3, top_k),
    ]
    assert float(loss.total) == pytest.approx(sum(expected), rel=1e-12)
    assert int(loss.count) == 2
    # The last teacher token is reached by none of the student's.
    reached, mass = loss.metrics["reached"].tolist()
    assert (reached, mass) == pytest.approx((0.95 + 0.6, 2))


def test_p_kl_by_hand_for_a_number_that_the_teacher_cuts():
    # The student's tokens "20" and "x", the teacher's "2" and "x"; the text is "20": .5 * .8 to the teacher.
    loss = projected_kl_loss(
        head([[0.5, 0.5]]), head([[0.4, 0.6]]), entries([[1, 0], [0, 1]]), chunk_tokens([0], [0], [0.8], [1.0]), top_k=9
    )
    # "20" .4 against .4, "2" and something else .1 against 0, which only a larger "20" could avoid, "x" .5 against .6.
    assert float(loss.total) > 50
    loss = projected_kl_loss(
        head([[0.5, 0.5]]),
        head([[0.4, 0.1, 0.5]]),
        entries([[1, 0], [1, 0], [0, 1]]),
        chunk_tokens([0], [0], [0.8], [1.0]),
        top_k=9,
    )
    assert float(loss.total) == pytest.approx(0, abs=1e-12)


def test_a_truncated_teacher_leaves_the_rest_to_one_cell():
    known = TopKPredictions(
        torch.tensor([[0, 1], [2, 4]]), torch.tensor([[0.4, 0.3], [0.19, 0.4]], dtype=torch.float64).log(), 5
    )
    loss = projected_kl_loss(known, head(STUDENT), entries(MATRIX), chunk_tokens([0, 3], [0, 2], **RESTS), top_k=2)
    expected = [
        literal_p_kl([0.4, 0.3, 0, 0, 0], STUDENT[0], MATRIX, 0, 0, 1.0, 1.0, 2, missing=0.3),
        # The teacher does not know the text's own token: no cell for the chunk.
        literal_p_kl([0, 0, 0.19, 0, 0.4], STUDENT[1], MATRIX, 3, 2, 0.0, 0.0, 1, missing=0.41),
    ]
    assert float(loss.total) == pytest.approx(sum(expected), rel=1e-12)


def test_the_top_tokens_of_a_row_do_not_depend_on_other_rows():
    chunks = chunk_tokens([0, 3], [0, 2], **RESTS)
    whole = projected_kl_loss(head(TEACHER), head(STUDENT), entries(MATRIX), chunks, top_k=2)
    parts = [
        projected_kl_loss(
            head(TEACHER[i : i + 1]),
            head(STUDENT[i : i + 1]),
            entries(MATRIX),
            ChunkTokens(*(each[i : i + 1] for each in chunks)),
            top_k=2,
        )
        for i in range(2)
    ]
    assert float(whole.total) == pytest.approx(sum(float(part.total) for part in parts), rel=1e-12)


def masses(size: int) -> st.SearchStrategy[list[float]]:
    """A distribution of ``size`` tokens, none of them impossible."""
    numbers = st.lists(st.floats(0.01, 1), min_size=size, max_size=size)
    return numbers.map(lambda drawn: [number / sum(drawn) for number in drawn])


@settings(deadline=None)
@given(masses(5), masses(4), st.floats(0.1, 1), st.floats(0.1, 1), st.sampled_from(["p_kl", "h_kl"]))
def test_neither_loss_is_ever_negative(q, p, teacher_rest, student_rest, name):
    chunks = chunk_tokens([3], [2], [teacher_rest], [student_rest])
    assert float(LOSSES[name](head([q]), head([p]), entries(MATRIX), chunks, top_k=3).total) >= -1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_equal_projections_have_no_loss_and_no_gradient(name):
    # The student's tokens are the teacher's in another order; a chunk of two tokens is as probable to both.
    q = [0.1, 0.2, 0.3, 0.4]
    student = head([[0.4, 0.3, 0.2, 0.1]])
    hidden = student.hidden.requires_grad_()
    permutation = torch.eye(4).flip(0).tolist()
    chunks = chunk_tokens([1], [2], [0.7], [0.7])
    loss = LOSSES[name](head([q]), student, entries(permutation), chunks, top_k=2)
    (gradient,) = torch.autograd.grad(loss.total, hidden)
    assert float(loss.total.detach()) == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_the_rest_of_a_chunk_gets_its_gradient(name):
    def total(rest: Tensor) -> Tensor:
        chunks = ChunkTokens(torch.tensor([0, 3]), torch.tensor([0, 2]), torch.tensor([-0.2, -0.5]), rest)
        return LOSSES[name](head(TEACHER), head(STUDENT), entries(MATRIX), chunks, top_k=2).total

    rest = torch.tensor([-0.4, -0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(total, (rest,))


def test_h_kl_is_the_common_part_and_the_sorted_rest():
    # Student tokens 0 and 1 are common (weights 1 and .9), and 2 (.7); 3 is not. Teacher tokens 0, 1 and 3 are.
    loss = hybrid_loss(head(TEACHER[:1]), head(STUDENT[:1]), entries(MATRIX), chunk_tokens([0], [0]), top_k=9)
    divergence = kl([0.3, 0.1, 0.4, 0.15 + 0.05], [0.4, 0.2, 0.3, 0.1])
    distance = abs(0.15 - 0.1) + abs(0.05 - 0)
    assert float(loss.total) == pytest.approx(0.6 * divergence + 0.4 * distance, rel=1e-12)
    common, mass = loss.metrics["common"].tolist()
    assert common / mass == pytest.approx(0.8)


def test_h_kl_moves_the_other_tokens_towards_the_mass_that_they_should_have():
    # Not down by .4 * .7 as the divergence over the common tokens alone does (GOLD).
    student = head([[0.5, 0.1, 0.4]])
    hidden = student.hidden.requires_grad_()
    matrix = entries([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    loss = hybrid_loss(head([[0.4, 0.3, 0.3]]), student, matrix, chunk_tokens([0], [0]), top_k=9)
    (gradient,) = torch.autograd.grad(loss.total, hidden)
    assert float(gradient[0, 2]) == pytest.approx(2 / 3 * (0.4 - 0.3) + 1 / 3 * 0.4 * 0.6, rel=1e-9)
    assert float(gradient[0, 1]) == pytest.approx(2 / 3 * (0.1 - 0.3) - 1 / 3 * 0.4 * 0.1, rel=1e-9)


def test_h_kl_leaves_out_what_a_student_whose_vocabulary_lies_inside_the_teachers_cannot_say():
    loss = hybrid_loss(
        head([[0.5, 0.2, 0.3]]), head([[0.4, 0.6]]), entries([[1, 0, 0], [0, 1, 0]]), chunk_tokens([0], [0]), top_k=9
    )
    assert float(loss.total) == pytest.approx(2 / 3 * kl([0.5, 0.2], [0.4, 0.6]) + 1 / 3 * 0.3, rel=1e-12)


def test_h_kl_compares_the_largest_others_only():
    matrix = entries([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    q, p = [0.4, 0.3, 0.2, 0.1], [0.5, 0.1, 0.4]
    loss = hybrid_loss(head([q]), head([p]), matrix, chunk_tokens([0], [0]), top_k=1)
    assert float(loss.total) == pytest.approx(0.25 * kl([0.4, 0.6], [0.5, 0.5]) + 0.75 * abs(0.3 - 0.4), rel=1e-12)


def test_h_kl_refuses_a_truncated_teacher():
    known = TopKPredictions(torch.tensor([[0, 1]]), torch.tensor([[0.4, 0.3]]).log(), 5)
    with pytest.raises(ValueError, match="whole distribution"):
        hybrid_loss(known, head(STUDENT[:1]), entries(MATRIX), chunk_tokens([0], [0]), top_k=2)
