"""Divergences between two binary distributions given by log-probabilities, each with its closed-form slope.

Every function maps teacher and student log-probabilities t, s (nats, at most 0) to ``(value, slope)``, elementwise,
with slope = d value / d s. Both come from formulas that are finite on the whole range; differentiating the values
instead would give NaN near s = 0 and rounding noise at s = t (alm.md §1.5). P = e^a and Q = e^b are the tempered
probabilities, with a = t / temperature - EPSILON, b = s / temperature - EPSILON.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 1e-6

Divergence = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - e^x)`` for x < 0 without cancellation (Maechler 2012)."""
    return torch.where(x < -math.log(2), torch.log1p(-x.exp()), torch.log(-torch.expm1(x)))


def kl(t: Tensor, s: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``P log(P/Q) + (1-P) log((1-P)/(1-Q))``; slope ``(Q-P) / (temperature (1-Q))``."""
    a, b = t / temperature - EPSILON, s / temperature - EPSILON
    value = _binary_kl(a, b)
    return value, _difference(a, b) / (-torch.expm1(b) * temperature)


def reverse_kl(t: Tensor, s: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``Q log(Q/P) + (1-Q) log((1-Q)/(1-P))``."""
    a, b = t / temperature - EPSILON, s / temperature - EPSILON
    return _binary_kl(b, a), b.exp() * ((b - a) - (log1mexp(b) - log1mexp(a))) / temperature


def tvd(t: Tensor, s: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Total variation distance, ``|P - Q|``."""
    a, b = t / temperature - EPSILON, s / temperature - EPSILON
    difference = _difference(a, b)
    return difference.abs(), difference.sign() * b.exp() / temperature


def kl_temperature_limit(t: Tensor, s: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``t - s + t log(s/t)``: the limit of ``temperature * kl`` for a growing temperature, which it does not use."""
    t, s = t - EPSILON, s - EPSILON
    return (t - s) + t * (s / t).log(), (t - s) / s


def k2(t: Tensor, s: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``r^2 / 2`` with ``r = (t - s) / temperature``."""
    r = (t - s) / temperature
    return r.square() / 2, -r / temperature


def k3(t: Tensor, s: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``e^r - 1 - r`` with ``r = (t - s) / temperature``, which is cut where e^r nears the largest float's root."""
    r = (t - s) / temperature
    r = r.clamp(max=math.log(torch.finfo(r.dtype).max) / 2)
    return torch.expm1(r) - r, -torch.expm1(r) / temperature


DIVERGENCES: dict[str, Divergence] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "tvd": tvd,
    "kl_temperature_limit": kl_temperature_limit,
    "k2": k2,
    "k3": k3,
}


def _binary_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    complement = -torch.expm1(log_p) * (log1mexp(log_p) - log1mexp(log_q))
    return log_p.exp() * (log_p - log_q) + complement


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """``e^b - e^a`` without cancellation where they are close and without overflow where they are far apart."""
    return (b - a).sign() * torch.maximum(a, b).exp() * -torch.expm1(-(b - a).abs())
