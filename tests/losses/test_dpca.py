from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.chunks import AlignedScores
from losses.dpca import dpca_loss


def side(logp: list[float], chunks: list[int], *, unscored: tuple[int, ...] = ()) -> AlignedScores:
    """One text's scores; a first token without a score or chunk stands before ``logp``."""
    ids = torch.tensor([[-1, *chunks]])
    scored = ids >= 0
    for index in unscored:
        scored[0, 1 + index] = False
    values = torch.tensor([[0.0, *logp]], dtype=torch.float64, requires_grad=True)
    return AlignedScores(values, None, scored, ids)


def gradient(student: AlignedScores, total: Tensor) -> list[float]:
    return torch.autograd.grad(total, student.label_logp)[0][0, 1:].tolist()


def test_even_shares_of_a_worked_chunk() -> None:
    teacher, student = side([-2.0], [0]), side([-1.0, -3.0], [0, 0])
    loss = dpca_loss(teacher, student, 1)
    assert loss.count == 2
    assert loss.total.item() == pytest.approx((-2 + 4) ** 2 / (2 * 2))
    assert gradient(student, loss.total) == pytest.approx([-1, -1])
    assert loss.metrics["advantage"].tolist() == [2, 2]


def test_shares_in_proportion_to_the_students_own_of_a_worked_chunk() -> None:
    teacher, student = side([-2.0], [0]), side([-1.0, -3.0], [0, 0])
    loss = dpca_loss(teacher, student, 1, shares="multiplicative")
    # log q = (T / S) log p = (-0.5, -1.5)
    assert loss.total.item() == pytest.approx((0.5**2 + 1.5**2) / 2)
    assert gradient(student, loss.total) == pytest.approx([-0.5, -1.5])


@given(st.data(), st.sampled_from(["additive", "multiplicative"]))
@settings(max_examples=60, deadline=None)
def test_advantages_are_those_of_a_walk_over_chunks(data: st.DataObject, shares: str) -> None:
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 8)), min_size=1, max_size=5))
    logp = st.floats(-6, -0.01)
    chunks = [[data.draw(st.lists(logp, min_size=n, max_size=n)) for n in pair] for pair in sizes]
    teacher, student = (
        side([x for chunk in chunks for x in chunk[part]], [c for c, chunk in enumerate(chunks) for _ in chunk[part]])
        for part in (0, 1)
    )
    expected = []
    for teacher_tokens, tokens in chunks:
        total, own = sum(teacher_tokens), sum(tokens)
        for logp_i in tokens:
            advantage = (total - own) / len(tokens) if shares == "additive" else (total / own - 1) * logp_i
            expected.append(advantage if len(tokens) <= 6 else 0.0)

    loss = dpca_loss(teacher, student, len(chunks), shares=shares, advantage_clip=None)

    assert loss.count == sum(len(tokens) for _, tokens in chunks if len(tokens) <= 6)
    assert loss.total.item() == pytest.approx(sum(a * a for a in expected) / 2)
    assert gradient(student, loss.total) == pytest.approx([-a for a in expected])
    too_long = sum(len(tokens) for _, tokens in chunks if len(tokens) > 6)
    assert loss.metrics["too_long_share"].tolist() == [too_long, len(expected)]
    assert loss.metrics["token_coverage"].tolist() == [len(expected) - too_long, len(expected)]


def test_even_shares_follow_the_gradient_of_their_value() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[-1, 0, 0, 1, 1, 1, 2]])
    logp = -3 * torch.rand(1, 7, dtype=torch.float64, generator=generator)
    teacher = AlignedScores(2 * logp - 0.5, None, ids >= 0, ids)
    assert torch.autograd.gradcheck(
        lambda s: dpca_loss(teacher, AlignedScores(s, None, ids >= 0, ids), 3).total, logp.requires_grad_()
    )


def test_a_clipped_advantage_pulls_no_harder() -> None:
    teacher, student = side([-1.0, -20.0, -3.0], [0, 1, 2]), side([-9.0, -1.0, -3.5], [0, 1, 2])
    loss = dpca_loss(teacher, student, 3, advantage_clip=5.0)
    assert gradient(student, loss.total) == pytest.approx([-5, 5, -0.5])
    assert loss.total.item() == pytest.approx(5 * (8 - 2.5) + 5 * (19 - 2.5) + 0.5**2 / 2)
    assert loss.metrics["clipped_share"].tolist() == [2, 3]


@pytest.mark.parametrize("shares", ["additive", "multiplicative"])
def test_nothing_is_left_to_do_once_the_chunk_has_the_teachers_probability(shares: str) -> None:
    teacher, student = side([-1.5, -2.5], [0, 1]), side([-1.0, -0.5, -2.5], [0, 0, 1])
    loss = dpca_loss(teacher, student, 2, shares=shares)
    assert loss.total == 0
    assert gradient(student, loss.total) == [0, 0, 0]


def test_a_chunk_that_the_student_is_certain_of_is_shared_evenly() -> None:
    teacher, student = side([-3.0], [0]), side([0.0, 0.0], [0, 0])
    loss = dpca_loss(teacher, student, 1, shares="multiplicative")
    assert gradient(student, loss.total) == pytest.approx([1.5, 1.5])


def test_a_chunk_with_an_unscored_token_on_either_side_does_not_count() -> None:
    teacher = side([-1.0, -1.0, -1.0], [0, 1, 2], unscored=(0,))
    student = side([-2.0, float("nan"), -2.0, -2.0], [0, 1, 1, 2], unscored=(1,))
    loss = dpca_loss(teacher, student, 3)
    assert loss.count == 1
    assert gradient(student, loss.total) == pytest.approx([0, 0, 0, -1])


def test_no_chunk_at_all_is_zero_with_a_zero_gradient_and_the_same_metrics() -> None:
    teacher, student = side([-1.0], [-1]), side([-2.0], [-1])
    loss = dpca_loss(teacher, student, 1)
    assert (loss.total, loss.count) == (0, 0)
    assert gradient(student, loss.total) == [0]
    some = dpca_loss(side([-1.0], [0]), side([-2.0], [0]), 1)
    assert set(some.metrics) == set(loss.metrics)


def test_the_teacher_gets_no_gradient() -> None:
    teacher, student = side([-1.0], [0]), side([-2.0], [0])
    dpca_loss(teacher, student, 1).total.backward()
    assert teacher.label_logp.grad is None


def test_unknown_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown shares 'even'; known: additive, multiplicative"):
        dpca_loss(side([-1.0], [0]), side([-1.0], [0]), 1, shares="even")
