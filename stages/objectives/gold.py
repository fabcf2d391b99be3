"""Options of GOLD."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.objectives.base import ObjectiveOptions


class GoldOptions(ObjectiveOptions):
    """Spans of equal text, merged by the chain rule; JSD on shared tokens, sorted L1 distance on the rest."""

    merge: Literal["bayesian", "observed"] = "bayesian"
    """A span's distribution: that of its last token times the probabilities of the tokens before it (``bayesian``), or
    that of its first token times the probabilities of the tokens after it (``observed``)."""
    beta: float = Field(0.5, ge=0, le=1)
    """Weight of the teacher in the JSD's mixture; 0 is forward KL, 1 reverse KL, which can be negative on rows whose
    masses do not add up to 1, as those of the shared tokens do not."""
    common_weight: float | None = Field(None, ge=0)
    """Weight of the JSD on shared tokens; by default their share of the teacher's vocabulary."""
    rest_weight: float | None = Field(None, ge=0)
    """Weight of the sorted L1 distance on all other tokens; by default the share of the others."""

    @model_validator(mode="after")
    def _weights(self) -> Self:
        if (self.common_weight is None) != (self.rest_weight is None):
            raise ValueError("common_weight and rest_weight must be given together, or neither")
        if self.common_weight == self.rest_weight == 0:
            raise ValueError("common_weight and rest_weight are both 0: nothing is left to train on")
        return self
