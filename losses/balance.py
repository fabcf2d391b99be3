"""Weights that make several losses pull equally hard (GradMag, alm.md §1.9)."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-8


def gradmag_weights(squared_norms: Tensor, *, preserve_magnitude: bool = True) -> Tensor:
    """Weight each loss by the inverse norm of its gradient with respect to the last decoder block.

    Args:
        squared_norms: ``[losses]``, squared L2 norm of each loss's gradient; add up over shards before calling.
        preserve_magnitude: scale the weights to add up to 1, as the paper does.

    Returns:
        ``[losses]`` detached weights. A loss without gradient gets weight 0: 1 / EPSILON, the formula's value, would
        silence all others once the weights are scaled.
    """
    norms = squared_norms.detach().sqrt()
    weights = (1 / (norms + EPSILON)).masked_fill(norms == 0, 0)
    if preserve_magnitude:
        weights = weights / weights.sum().clamp(min=EPSILON)
    return weights
