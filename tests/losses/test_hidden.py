from __future__ import annotations

import pytest
import torch
from torch import Tensor

from losses.hidden import channel_magnitude, hidden_state_loss
from losses.output import LossOutput


def states(seed: int, rows: int = 12, width: int = 5) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_hand_worked_channels() -> None:
    teacher = torch.tensor([[2.0, 1.0], [4.0, 3.0], [torch.nan, 9.0]])
    student = torch.tensor([[3.0, 1.0], [4.0, 5.0], [0.0, torch.nan]], requires_grad=True)
    valid = torch.tensor([True, True, False])
    squares, count = channel_magnitude(teacher, valid)
    assert squares.tolist() == [20, 10]
    assert count == 2
    loss = hidden_state_loss(teacher, student, valid, scale=squares / count)
    loss.total.backward()
    # Channel 0: 1 / 10, channel 1: 4 / 5, each over two channels.
    assert loss.total.item() == pytest.approx((0.1 + 0.8) / 2)
    assert loss.count == 2
    assert student.grad[:2].flatten().tolist() == pytest.approx([0.1, 0, 0, 0.4])
    assert student.grad[2].eq(0).all()


def test_hand_worked_absolute_differences_over_one_scale() -> None:
    teacher = torch.tensor([[2.0, -1.0], [4.0, 3.0]])
    student = torch.tensor([[3.0, -1.0], [4.0, 5.0]], requires_grad=True)
    valid = torch.tensor([True, True])
    magnitudes, count = channel_magnitude(teacher, valid, "l1")
    assert magnitudes.tolist() == [6, 4]
    by_channel = hidden_state_loss(teacher, student, valid, scale=magnitudes / count, distance="l1")
    assert by_channel.total.item() == pytest.approx((1 / 3 + 2 / 2) / 2)
    # The mean over both channels is 2.5.
    overall = hidden_state_loss(teacher, student, valid, scale=(magnitudes / count).mean(), distance="l1")
    overall.total.backward()
    assert overall.total.item() == pytest.approx((1 / 2.5 + 2 / 2.5) / 2)
    assert student.grad.flatten().tolist() == pytest.approx([0.2, 0, 0, 0.2])


def test_scaling_a_channel_of_both_models_changes_nothing() -> None:
    teacher, student, valid = states(0), states(1), torch.ones(12, dtype=torch.bool)

    def loss(factor: Tensor) -> Tensor:
        squares, count = channel_magnitude(teacher * factor, valid)
        return hidden_state_loss(teacher * factor, student * factor, valid, scale=squares / count).total

    torch.testing.assert_close(loss(torch.tensor([1.0, 10, 100, 0.1, 3])), loss(torch.ones(5)))


def test_micro_batches_give_the_loss_and_gradient_of_the_whole() -> None:
    teacher, student = states(0), states(1).requires_grad_()
    valid = torch.arange(12) % 5 != 0
    parts = [slice(0, 3), slice(3, 4), slice(4, 12)]
    energies = [channel_magnitude(teacher[part], valid[part]) for part in parts]
    squares, count = sum(energy for energy, _ in energies), sum(number for _, number in energies)
    scale = squares / count

    def mean(losses: list[LossOutput]) -> Tensor:
        return sum(loss.total for loss in losses) / sum(loss.count for loss in losses)

    whole = mean([hidden_state_loss(teacher, student, valid, scale=scale)])
    split = mean([hidden_state_loss(teacher[p], student[p], valid[p], scale=scale) for p in parts])
    torch.testing.assert_close(split, whole)
    torch.testing.assert_close(torch.autograd.grad(split, student), torch.autograd.grad(whole, student))


def test_zero_with_zero_gradient_at_equality_and_none_for_the_teacher() -> None:
    teacher = states(0).bfloat16().requires_grad_()
    student = teacher.detach().clone().requires_grad_()
    loss = hidden_state_loss(teacher, student, torch.ones(12, dtype=torch.bool), scale=torch.ones(5))
    loss.total.backward()
    assert loss.total.dtype == torch.float32
    assert loss.total == 0
    assert student.grad.eq(0).all()
    assert teacher.grad is None


def test_widths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="project the student if widths differ"):
        hidden_state_loss(states(0), states(0, width=4), torch.ones(12, dtype=torch.bool), scale=torch.ones(5))
