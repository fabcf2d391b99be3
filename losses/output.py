"""What every loss returns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LossOutput(NamedTuple):
    """A loss as a sum and the number of things summed, so that any split of the data gives the same result.

    The loss of a step is the sum of ``total`` over all micro-batches and ranks, divided by the sum of ``count``.

    Attributes:
        total: sum over the loss's units, differentiable; float32 scalar (float64 for float64 inputs).
        count: number of units; int64 scalar.
        metrics: name -> ``[numerator, denominator]``, detached and float32. They add up over micro-batches and
            ranks like ``total`` and ``count``; the value to report is the quotient of the two sums.
    """

    total: Tensor
    count: Tensor
    metrics: dict[str, Tensor]


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Pack one metric as LossOutput wants it: float32 ``[2]``, detached."""
    return torch.stack([numerator.detach().float(), denominator.detach().float()])
