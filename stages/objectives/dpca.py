"""Options of DPCA."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.objectives.base import ObjectiveOptions


class DpcaOptions(ObjectiveOptions):
    """The teacher's chunk log-probabilities, shared out over the student's tokens (arXiv 2606.09456)."""

    shares: Literal["additive", "multiplicative"] = "additive"
    """How a chunk's gap is divided over its tokens: evenly, or in proportion to the student's own log-probabilities as
    in the paper."""
    max_chunk_tokens: int | None = Field(6, ge=1)
    """Chunks of more student tokens are left out; null: none are."""
    advantage_clip: float | None = Field(5.0, gt=0)
    """Nats beyond which a token's gap pulls no harder; null: no limit."""
