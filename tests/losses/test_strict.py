from __future__ import annotations

import pytest
import torch
from torch import Tensor

from losses.predictions import LinearHead, TopKPredictions
from losses.same_vocab import kl, same_vocabulary_loss
from losses.strict import strict_loss

TEACHER_IDS = torch.tensor([8, 0, 3, 5, 6])
STUDENT_IDS = torch.tensor([1, 2, 4, 7, 9])


def head(rows: int, vocabulary: int, seed: int) -> LinearHead:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return LinearHead(hidden, torch.randn(vocabulary, 4, generator=generator, dtype=torch.float64))


def probabilities(of: LinearHead, row: int, temperature: float = 1.0) -> list[float]:
    return (of.hidden[row] @ of.weight.t() / temperature).softmax(0).tolist()


def literal(
    teacher: LinearHead, student: LinearHead, top_k: int | None, temperature: float = 1.0
) -> tuple[float, float]:
    """Sum of reverse KL on the renormalised shared tokens, and of the teacher's mass there, token by token."""
    total = mass = 0.0
    for row in range(len(student)):
        q = {s: probabilities(teacher, row, temperature)[t] for t, s in zip(*pairs(), strict=True)}
        p = {s: probabilities(student, row, temperature)[s] for _, s in zip(*pairs(), strict=True)}
        mass += sum(probabilities(teacher, row)[t] for t, _ in zip(*pairs(), strict=True))
        kept = sorted(p, key=lambda token: -p[token])[:top_k]
        q_sum, p_sum = sum(q[token] for token in kept), sum(p[token] for token in kept)
        for token in kept:
            ratio = torch.tensor((p[token] / p_sum) / (q[token] / q_sum), dtype=torch.float64)
            total += p[token] / p_sum * ratio.log().item()
    return total, mass


def pairs() -> tuple[list[int], list[int]]:
    return TEACHER_IDS.tolist(), STUDENT_IDS.tolist()


@pytest.mark.parametrize("top_k", [None, 2, 3, 5, 100])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_against_a_literal_computation(top_k: int | None, temperature: float) -> None:
    teacher, student = head(6, 9, 0), head(6, 10, 1)
    found = strict_loss(teacher, student, TEACHER_IDS, STUDENT_IDS, top_k=top_k, temperature=temperature)
    total, mass = literal(teacher, student, top_k, temperature)
    assert found.total.item() == pytest.approx(total, rel=1e-10)
    assert found.count == 6
    torch.testing.assert_close(found.metrics["teacher_shared_mass"], torch.tensor([mass, 6.0]))


@pytest.mark.parametrize("top_k", [None, 2])
def test_gradients_reach_hidden_states_and_weight(top_k: int | None) -> None:
    teacher, student = head(3, 9, 0), head(3, 10, 1)

    def total(hidden: Tensor, weight: Tensor) -> Tensor:
        return strict_loss(teacher, LinearHead(hidden, weight), TEACHER_IDS, STUDENT_IDS, top_k=top_k).total

    hidden, weight = student.hidden.requires_grad_(), student.weight.requires_grad_()
    assert torch.autograd.gradcheck(total, (hidden, weight))
    (gradient,) = torch.autograd.grad(total(hidden, weight), weight)
    assert gradient[[0, 3, 5, 6, 8]].abs().max() == 0  # tokens that are not shared are left alone


def test_logits_of_tokens_that_are_not_shared_change_nothing() -> None:
    teacher, student = head(4, 9, 0), head(4, 10, 1)
    moved = LinearHead(student.hidden, student.weight.index_fill(0, torch.tensor([0, 3, 5]), 7.0))
    before, after = (strict_loss(teacher, each, TEACHER_IDS, STUDENT_IDS).total for each in (student, moved))
    torch.testing.assert_close(before, after)


def test_with_one_vocabulary_it_is_the_divergence_of_whole_distributions() -> None:
    teacher, student, every = head(5, 9, 0), head(5, 9, 1), torch.arange(9)
    strict = strict_loss(teacher, student, every, every, divergence=kl)
    torch.testing.assert_close(strict.total, same_vocabulary_loss(teacher, student, divergence=kl).total)


def test_no_rows_give_zero_with_a_zero_gradient() -> None:
    student = head(0, 10, 1)
    weight = student.weight.requires_grad_()
    found = strict_loss(head(0, 9, 0), student, TEACHER_IDS, STUDENT_IDS)
    assert (found.total, found.count) == (0, 0)
    assert torch.autograd.grad(found.total, weight)[0].abs().max() == 0


def test_what_cannot_be_compared_is_refused() -> None:
    teacher, student = head(2, 9, 0), head(2, 10, 1)
    with pytest.raises(ValueError, match="top_k is 1"):
        strict_loss(teacher, student, TEACHER_IDS, STUDENT_IDS, top_k=1)
    with pytest.raises(ValueError, match="at least 2 pairs"):
        strict_loss(teacher, student, TEACHER_IDS[:1], STUDENT_IDS[:1])
    best = teacher.log_probs(slice(None)).topk(3, dim=1)
    with pytest.raises(ValueError, match="whole distribution"):
        strict_loss(TopKPredictions(best.indices, best.values, 9), student, TEACHER_IDS, STUDENT_IDS)
