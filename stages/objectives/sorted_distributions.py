"""Options of objectives that compare distributions by rank, without knowing which token is which."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.objectives.base import ObjectiveOptions

Positions = Literal["aligned", "paired"]


class UldOptions(ObjectiveOptions):
    """Universal logit distillation: L1 distance of sorted distributions (arXiv 2402.12030)."""

    positions: Positions = "aligned"
    """Which positions are compared: ``aligned``, those that predict from the same bytes; ``paired``, the paper's i-th
    token of one side with the i-th of the other."""
    top_k: int | None = Field(None, ge=1)
    """Compare only so many of the largest probabilities, and the rest as one; None sorts the whole vocabulary, which is
    most of a step's time on a CPU and hardly any with 1000. The metric ``truncation`` bounds what is missed."""


class MultiLevelOtOptions(ObjectiveOptions):
    """Distributions ranked over a sequence, compared at every position and as a set (arXiv 2412.14528).

    Time and memory grow with the square of the positions in a sequence.
    """

    positions: Positions = "aligned"
    """Which positions are compared: ``aligned``, those that predict from the same bytes; ``paired``, the i-th token of
    one side with the i-th of the other."""
    k: int = Field(50, ge=1)
    """Tokens of each vocabulary that a sequence keeps: those with the largest probability over all its positions."""
    log_weight: float = Field(0.1, ge=0)
    """Weight of the KL of the kept probabilities beside their absolute difference, which has weight 1."""
    sinkhorn_weight: float = Field(0.1, ge=0)
    """Weight of the transport cost between the two sets of distributions of a sequence, per position."""
    regularization: float = Field(0.1, ge=0.05)
    """Entropic regularization of the transport plan; costs lie between 0 and 2. Below 0.05 they underflow."""
    iterations: int = Field(20, ge=1)
    """Sinkhorn iterations."""
