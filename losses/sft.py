"""Next-token cross-entropy, from the scores that the fused head has already computed."""

from __future__ import annotations

from torch import Tensor

from losses.output import LossOutput


def cross_entropy_loss(label_logp: Tensor, valid: Tensor) -> LossOutput:
    """Negative log-likelihood in nats; the units are tokens.

    Args:
        label_logp: log-probability of each token, any shape.
        valid: bool, same shape; which tokens count. The others may hold anything.
    """
    total = -label_logp.masked_fill(~valid, 0).sum()
    return LossOutput(total=total, count=valid.sum(), metrics={})
