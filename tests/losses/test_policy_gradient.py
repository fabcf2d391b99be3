from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from losses.chunks import AlignedScores
from losses.policy_gradient import policy_gradient_loss


def side(logp: Tensor | list[float], chunks: list[int], *, unscored: tuple[int, ...] = ()) -> AlignedScores:
    """One text's scores; a first token without a score or chunk stands before ``logp``."""
    ids = torch.tensor([[-1, *chunks]])
    scored = ids >= 0
    for index in unscored:
        scored[0, 1 + index] = False
    values = torch.as_tensor(logp, dtype=torch.float64)
    values = torch.cat([torch.zeros(1, dtype=torch.float64), values])[None]
    return AlignedScores(values if values.requires_grad else values.requires_grad_(), None, scored, ids)


def gradient(student: AlignedScores, total: Tensor) -> list[float]:
    return torch.autograd.grad(total, student.label_logp)[0][0, 1:].tolist()


@pytest.mark.parametrize(
    ("credit", "advantages"), [("whole", [2, 2]), ("additive", [1, 1]), ("multiplicative", [0.5, 1.5])]
)
def test_a_worked_chunk(credit, advantages):
    # T = -2, S = -4: the student finds the chunk too improbable by two nats.
    student = side([-1.0, -3.0], [0, 0])
    loss = policy_gradient_loss(side([-2.0], [0]), student, 1, credit=credit)
    assert (loss.total.item(), loss.count) == (-2, 2)
    assert gradient(student, loss.total) == pytest.approx([-a for a in advantages])
    assert loss.metrics["advantage"].tolist() == [sum(advantages), 2]


def test_an_advantage_beyond_the_clip_pulls_no_harder_and_the_value_is_unclipped():
    student = side([-1.0, -20.0, -3.0], [0, 1, 2])
    loss = policy_gradient_loss(side([-9.0, -1.0, -3.5], [0, 1, 2]), student, 3, advantage_clip=5.0)
    assert gradient(student, loss.total) == pytest.approx([5, -5, 0.5])
    assert loss.total.item() == pytest.approx(8 - 19 + 0.5)
    assert loss.metrics["clipped_share"].tolist() == [2, 3]


def test_what_cannot_be_compared_does_not_count():
    teacher = side([-1.0, -1.0, -1.0], [0, 1, 2], unscored=(0,))
    student = side([-2.0, math.nan, -2.0, -2.0], [0, 1, 1, 2], unscored=(1,))
    loss = policy_gradient_loss(teacher, student, 3)
    assert loss.count == 1
    assert gradient(student, loss.total) == [0, 0, 0, -1]
    long = policy_gradient_loss(side([-1.0], [0]), side([-1.0, -1.0], [0, 0]), 1, max_chunk_tokens=1)
    assert (long.total, long.count) == (0, 0)
    assert set(long.metrics) == set(loss.metrics)


def test_the_teacher_gets_no_gradient_and_unknown_credit_is_refused():
    teacher, student = side([-1.0], [0]), side([-2.0], [0])
    policy_gradient_loss(teacher, student, 1).total.backward()
    assert teacher.label_logp.grad is None
    with pytest.raises(ValueError, match="unknown credit 'even'; known: whole, additive, multiplicative"):
        policy_gradient_loss(teacher, student, 1, credit="even")


class ToyModels:
    """A student that writes two letters a chunk and a teacher that writes chunks; both see the chunk before.

    Texts have two chunks of two letters each: 16 of them, so that every expectation can be enumerated.
    """

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        # Context: the letters so far, as one number; 1 + 2 + 4 + 8 contexts of the student, 1 + 4 of the teacher.
        self.logits = torch.randn(15, 2, generator=generator, dtype=torch.float64).requires_grad_()
        self.teacher = torch.randn(5, 4, generator=generator, dtype=torch.float64).log_softmax(-1)

    def student_logp(self, letters: tuple[int, ...]) -> Tensor:
        """Log-probability of each letter: [4]."""
        contexts = [2**n - 1 + int("0" + "".join(map(str, letters[:n])), 2) for n in range(4)]
        return torch.stack(
            [self.logits[c].log_softmax(-1)[letter] for c, letter in zip(contexts, letters, strict=True)]
        )

    def teacher_logp(self, letters: tuple[int, ...]) -> Tensor:
        """Log-probability of each chunk: [2]."""
        first, second = (2 * letters[n] + letters[n + 1] for n in (0, 2))
        return torch.stack([self.teacher[0, first], self.teacher[1 + first, second]])

    def reverse_kl_gradient(self) -> Tensor:
        """Of both chunks' exact reverse KL, the second weighted by how often the student now gets there."""
        total = torch.zeros((), dtype=torch.float64)
        first = {pair: self.student_logp((*pair, 0, 0))[:2].sum() for pair in itertools.product((0, 1), repeat=2)}
        for pair, logp in first.items():
            total = total + logp.exp() * (logp - self.teacher_logp((*pair, 0, 0))[0])
            for rest in itertools.product((0, 1), repeat=2):
                letters = (*pair, *rest)
                below = self.student_logp(letters)[2:].sum()
                total = total + logp.exp().detach() * below.exp() * (below - self.teacher_logp(letters)[1])
        return torch.autograd.grad(total, self.logits)[0]

    def expected_gradient(self, credit: str) -> Tensor:
        """Of the loss, over all texts that the student may write."""
        total = torch.zeros((), dtype=torch.float64)
        for letters in itertools.product((0, 1), repeat=4):
            logp = self.student_logp(letters)
            student, teacher = side(logp, [0, 0, 1, 1]), side(self.teacher_logp(letters), [0, 1])
            loss = policy_gradient_loss(teacher, student, 2, credit=credit, advantage_clip=None)
            total = total + logp.sum().exp().detach() * loss.total
        return torch.autograd.grad(total, self.logits)[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_expected_gradient_is_that_of_the_exact_reverse_kl_of_every_chunk(seed):
    toys = ToyModels(seed)
    exact = toys.reverse_kl_gradient()
    torch.testing.assert_close(toys.expected_gradient("whole"), exact)
    assert (toys.expected_gradient("additive") - exact).abs().max() > 0.01


def test_the_value_is_the_reverse_kl_in_expectation():
    toys = ToyModels()
    estimate = exact = 0.0
    for letters in itertools.product((0, 1), repeat=4):
        logp, teacher = toys.student_logp(letters).detach(), toys.teacher_logp(letters)
        probability = float(logp.sum().exp())
        loss = policy_gradient_loss(side(teacher, [0, 1]), side(logp, [0, 0, 1, 1]), 2)
        estimate += probability * float(loss.total.detach())
        exact += probability * float(logp.sum() - teacher.sum())
    assert estimate == pytest.approx(exact)
    assert exact > 0
