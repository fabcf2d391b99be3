"""Weights of several losses, from their gradients.

Every rule here needs only the inner products of the losses' gradients (their Gram matrix) and the losses' values, and
gives one weight a loss. Both add up over micro-batches and processes, so the rules work wherever training does.

Legend: L losses.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

EPSILON = 1e-8


class Balancer(Protocol):
    """Sets the weights of L losses, step by step."""

    def weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Weights [L] of the coming step.

        Args:
            gram: float64 [L, L] inner products of the losses' gradients, of the step before.
            losses: float64 [L] their values at that step.
        """

    def state(self) -> list[float] | None:
        """What a checkpoint must hold; None for nothing."""

    def restore(self, state: list[float] | None) -> None:
        """Continue from what ``state`` gave."""


def gradmag_weights(squared_norms: Tensor, *, preserve_magnitude: bool = True) -> Tensor:
    """Weight each loss by the inverse norm of its gradient (GradMag, alm.md §1.9).

    Args:
        squared_norms: ``[L]``, squared L2 norm of each loss's gradient; add up over shards before calling.
        preserve_magnitude: scale the weights to add up to 1, as the paper does.

    Returns:
        ``[L]`` detached weights. A loss without gradient gets weight 0: 1 / EPSILON, the formula's value, would
        silence all others once the weights are scaled.
    """
    norms = squared_norms.detach().sqrt()
    weights = (1 / (norms + EPSILON)).masked_fill(norms == 0, 0)
    if preserve_magnitude:
        weights = weights / weights.sum().clamp(min=EPSILON)
    return weights


class GradMag:
    """``gradmag_weights`` of the step before; has no state."""

    def weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        return gradmag_weights(gram.diagonal())

    def state(self) -> None:
        return None

    def restore(self, state: list[float] | None) -> None:
        return
