from __future__ import annotations

import decimal

import pytest
import torch
from torch import Tensor

from losses.alm import alm_loss
from losses.divergences import DIVERGENCES, log1mexp

# t, s, temperature: KL, reverse KL, TVD, slope of KL (alm.md §9.2, float64)
WORKED = [
    (-1, -2, 1, 0.169860074, 0.135530855, 0.232543925, -0.2689411103),
    (-1, -2, 5, 0.055321765, 0.063130102, 0.148410559, -0.09003292745),
    (-1, -2, 100, 0.003053001, 0.003824182, 0.009851151, -0.004974748975),
    (-2, -1, 1, 0.135530855, 0.169860074, 0.232543925, 0.3678788592),
    (-2, -1, 5, 0.063130102, 0.055321765, 0.148410559, 0.1637452473),
    (-2, -1, 100, 0.003824182, 0.003053001, 0.009851151, 0.009899503429),
    (-0.1, -0.1, 100, 0, 0, 0, 0),
]


def one(t: float, s: float, temperature: float, name: str, dtype: torch.dtype = torch.float64) -> tuple[float, float]:
    """Loss of a single chunk and its derivative with respect to the student, as autograd reports it."""
    student = torch.tensor([[s]], dtype=dtype, requires_grad=True)
    loss = alm_loss(torch.tensor([[t]], dtype=dtype), student, temperature=temperature, divergence=name)
    loss.total.backward()
    return loss.total.item(), student.grad.item()


@pytest.mark.parametrize(("t", "s", "temperature", "kl", "reverse_kl", "tvd", "slope"), WORKED)
def test_worked_numbers(
    t: float, s: float, temperature: float, kl: float, reverse_kl: float, tvd: float, slope: float
) -> None:
    assert one(t, s, temperature, "kl") == pytest.approx((kl, slope), abs=1e-9)
    assert one(t, s, temperature, "reverse_kl")[0] == pytest.approx(reverse_kl, abs=1e-9)
    assert one(t, s, temperature, "tvd")[0] == pytest.approx(tvd, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "t", "s", "value"),
    [
        ("k2", -1, -2, 0.02),
        ("k3", -1, -2, 0.021402758),
        ("kl_temperature_limit", -1, -2, 0.306852626),
        ("kl_temperature_limit", -2, -1, 0.386294054),
    ],
)
def test_worked_numbers_of_the_other_divergences(name: str, t: float, s: float, value: float) -> None:
    assert one(t, s, 5, name)[0] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("t", "s", "temperature", "slope"),
    [
        (-8, 0, 1, 1.0e6),
        (-8, 0, 5, 1.6e5),
        (-8, 0, 100, 769),
        (-6, -0.05, 100, 1.153),
        (-0.05, -6, 100, -0.00991),
        (-20, -18, 1, 1.3e-8),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slope_of_kl_where_it_is_extreme(
    t: float, s: float, temperature: float, slope: float, dtype: torch.dtype
) -> None:
    assert one(t, s, temperature, "kl", dtype)[1] == pytest.approx(slope, rel=2e-2)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 5.0, 100.0])
def test_slopes_are_the_derivatives_of_the_values(name: str, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = -5 * torch.rand(3, 4, generator=generator, dtype=torch.float64) - 0.1
    student = (-5 * torch.rand(3, 4, generator=generator, dtype=torch.float64) - 0.1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: alm_loss(teacher, s, temperature=temperature, divergence=name).total, student
    )


GRID = [0.0, -1e-12, -1e-9, -1e-7, -1e-6, -1e-3, -0.1, -1.0, -20.0, -150.0, -1e4]


def grid(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values = torch.tensor(GRID, dtype=dtype)
    return torch.cartesian_prod(values, values).T


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 5.0, 100.0])
def test_finite_and_non_negative_everywhere(name: str, temperature: float) -> None:
    for dtype in (torch.float32, torch.float64):
        value, slope = DIVERGENCES[name](*grid(dtype), temperature)
        assert value.isfinite().all()
        assert slope.isfinite().all()
        assert value.min() > -1e-6


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "tvd", "kl_temperature_limit", "k2"])
def test_float32_agrees_with_float64_everywhere(name: str) -> None:
    for found, exact in zip(
        DIVERGENCES[name](*grid(torch.float32), 5.0), DIVERGENCES[name](*grid(torch.float64), 5.0), strict=True
    ):
        torch.testing.assert_close(found.double(), exact, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_with_zero_slope_at_equality(name: str, dtype: torch.dtype) -> None:
    logp = torch.tensor(GRID, dtype=dtype)
    value, slope = DIVERGENCES[name](logp, logp, 5.0)
    assert value.eq(0).all()
    assert slope.eq(0).all()


def test_temperature_times_kl_approaches_its_limit() -> None:
    t, s = torch.tensor(-1.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    limit = DIVERGENCES["kl_temperature_limit"](t, s, 1.0)[0]
    errors = [abs(temperature * DIVERGENCES["kl"](t, s, temperature)[0] - limit) for temperature in (1, 10, 100)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_kl_and_reverse_kl_mirror_each_other() -> None:
    t, s = grid(torch.float64)
    torch.testing.assert_close(DIVERGENCES["kl"](t, s, 5.0)[0], DIVERGENCES["reverse_kl"](s, t, 5.0)[0])


def test_log1mexp_against_sixty_digits() -> None:
    x = torch.tensor([-1e-6, -1e-3, -0.5, -0.693, -0.694, -5.0, -80.0], dtype=torch.float32)
    with decimal.localcontext(prec=60):
        exact = [float((1 - decimal.Decimal(value).exp()).ln()) for value in x.tolist()]
    torch.testing.assert_close(log1mexp(x).double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-6, atol=0)
