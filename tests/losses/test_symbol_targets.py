from __future__ import annotations

import math

import pytest
import torch

from losses.coverings import NextSymbols
from losses.symbol_targets import symbol_divergence, symbol_targets


def double(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def masses_of(mass: torch.Tensor, ended: torch.Tensor) -> NextSymbols:
    return NextSymbols(mass, ended, torch.zeros_like(ended))


def test_masses_become_shares_of_cells_and_a_complement():
    mass = double([0.2, 0.0, 0.1], [0.0, 0.0, 0.0], [0.2, 0.2, 0.0])
    targets = symbol_targets(NextSymbols(mass, double(0.06, 0.0, 0.0), double(0.04, 0.0, 0.1)), torch.float64)
    torch.testing.assert_close(targets.cells, double([0.5, 0.0, 0.25], [0.0, 0.0, 0.0], [0.4, 0.4, 0.0]))
    torch.testing.assert_close(targets.complement, double(0.25, 0.0, 0.2))
    assert targets.lower_bound.tolist() == [True, False, False]


def test_what_ended_is_shared_where_every_symbol_has_a_cell():
    targets = symbol_targets(masses_of(double([0.3, 0.1]), double(0.6)), torch.float64)
    torch.testing.assert_close(targets.cells, double([0.75, 0.25]))
    assert targets.complement.tolist() == [0.0]


def test_the_divergence_compares_the_cells_and_all_other_symbols_as_one():
    p = [0.4, 0.1, 0.2, 0.3]
    targets = symbol_targets(masses_of(double([0.5, 0.0, 0.3, 0.0]), double(0.2)), torch.float64)
    expected = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.4)
    assert float(symbol_divergence(targets, double(p).log())) == pytest.approx(expected)


def test_a_student_with_the_targets_has_no_loss_and_no_gradient_and_one_without_target_neither():
    masses = masses_of(double([0.5, 0.0, 0.3, 0.0], [0.1, 0.2, 0.3, 0.4], [0.0] * 4), double(0.2, 0.0, 0.0))
    # The complement may be spread in any way over the symbols without a cell.
    logits = double([0.5, 0.05, 0.3, 0.15], [0.1, 0.2, 0.3, 0.4], [0.25] * 4).log().requires_grad_()
    losses = symbol_divergence(symbol_targets(masses, torch.float64), logits)
    losses.sum().backward()
    torch.testing.assert_close(losses.detach(), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(logits.grad, torch.zeros(3, 4, dtype=torch.float64))


def test_gradients_are_finite_where_the_student_is_sure_of_something_else():
    masses = masses_of(double([1.0, 0.0, 0.0], [0.0, 0.0, 0.4]), double(0.0, 0.6))
    logits = double([-900.0, 0.0, 900.0], [-900.0, -900.0, 900.0]).requires_grad_()
    losses = symbol_divergence(symbol_targets(masses, torch.float64), logits)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad.isfinite().all()


def test_the_divergence_has_the_gradient_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(5, 6, generator=generator, dtype=torch.float64) * (torch.arange(6) % 2 == 0)
    targets = symbol_targets(masses_of(mass, torch.rand(5, generator=generator, dtype=torch.float64)), torch.float64)
    logits = torch.randn(5, 6, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: symbol_divergence(targets, z), (logits,))
