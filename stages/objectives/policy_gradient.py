"""Options of the policy gradient."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.objectives.base import ObjectiveOptions


class PolicyGradientOptions(ObjectiveOptions):
    """The reverse KL of chunks that the student wrote, by the policy gradient (arXiv 2306.08543, 2606.09456)."""

    credit: Literal["whole", "additive", "multiplicative"] = "whole"
    """What each student token of a chunk gets of the chunk's advantage: all of it, which is the gradient of the chunk's
    reverse KL; an even share; or a share in proportion to the student's own log-probabilities."""
    max_chunk_tokens: int | None = Field(None, ge=1)
    """Chunks of more student tokens are left out; null: none are."""
    advantage_clip: float | None = Field(5.0, gt=0)
    """Nats beyond which a token's advantage pulls no harder; null: no limit."""
