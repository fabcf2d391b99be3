from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from losses.cells import cell_kl, pooled

MASSES = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda masses: sum(masses) > 1e-3)


@given(MASSES, MASSES)
def test_it_is_the_divergence_of_normalised_masses(first, second):
    second = [mass + 1e-3 for mass in second]
    teacher, student = ([mass / sum(masses) for mass in masses] for masses in (first, second))
    expected = sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True) if t > 0)
    found = float(cell_kl(torch.tensor([first]).double(), torch.tensor([second]).double()))
    assert found == pytest.approx(expected, abs=1e-6)
    assert found >= -1e-9


def test_proportional_masses_are_equal():
    masses = torch.tensor([[0.1, 0.2, 0.4]], dtype=torch.float64, requires_grad=True)
    loss = cell_kl(masses.detach() / 3, masses)
    (gradient,) = torch.autograd.grad(loss.sum(), masses)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-15)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("teacher", "student"), [((0.0, 0.0), (0.2, 0.3)), ((0.2, 0.3), (0.0, 0.0)), ((0.0, 0.5), (0.5, 0.0))]
)
def test_masses_of_zero_stay_finite(teacher, student):
    student = torch.tensor([student], requires_grad=True)
    loss = cell_kl(torch.tensor([teacher]), student)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_pooling_adds_up_by_cell_and_by_row():
    masses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    assert pooled(masses, torch.tensor([2, 0, 2]), 3).tolist() == [[2, 0, 5], [16, 0, 40]]
    assert pooled(masses, torch.tensor([[0, 0, 0], [1, 2, 1]]), 3).tolist() == [[7, 0, 0], [0, 40, 16]]
