"""Options of objectives that compare next-token distributions over one set of tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.objectives.base import ObjectiveOptions

DivergenceName = Literal["kl", "reverse_kl", "jeffreys", "jsd", "tvd", "skew_kl", "skew_reverse_kl", "adaptive_kl"]
_WITH_ALPHA = ("skew_kl", "skew_reverse_kl", "adaptive_kl")


class DivergenceOptions(ObjectiveOptions):
    """Which divergence between the teacher's and the student's distribution, at which temperature."""

    divergence: DivergenceName = "kl"
    """``kl`` forward, ``reverse_kl``, ``jeffreys`` their sum, ``jsd`` generalised Jensen-Shannon, ``tvd`` total
    variation, ``skew_kl`` and ``skew_reverse_kl`` (DistiLLM), ``adaptive_kl`` a mix by where the two differ (AKL)."""
    beta: float | None = Field(None, ge=0, le=1)
    """With ``jsd``: weight of the teacher, default 0.5; 0 gives forward KL, 1 reverse KL."""
    alpha: float | None = Field(None, ge=0, le=1)
    """With ``skew_kl`` and ``skew_reverse_kl``: share of the distribution itself in what it is compared with, default
    0.1. With ``adaptive_kl``: the teacher's mass in the head of its distribution, default 0.5."""
    temperature: float = Field(1.0, gt=0)
    """Both models' logits are divided by it."""

    @model_validator(mode="after")
    def _parameters_belong_to_the_divergence(self) -> DivergenceOptions:
        if self.beta is not None and self.divergence != "jsd":
            raise ValueError(f"beta is a parameter of divergence: jsd; {self.divergence} has none")
        if self.alpha is not None and self.divergence not in _WITH_ALPHA:
            raise ValueError(f"alpha is a parameter of {', '.join(_WITH_ALPHA)}; {self.divergence} has none")
        if self.alpha == 1 and self.divergence in ("skew_kl", "skew_reverse_kl"):
            raise ValueError(f"alpha: 1 makes {self.divergence} compare a distribution with itself; use less than 1")
        return self


class SameVocabularyOptions(DivergenceOptions):
    """Divergence of two models with one vocabulary at every token."""

    scale_by_temperature: bool = False
    """Multiply by the temperature squared, which keeps the size of forward KL's gradient at high temperatures."""


class StrictOptions(DivergenceOptions):
    """Divergence on the shared vocabulary where both tokenizers cut the text alike (arXiv 2610.08448)."""

    divergence: DivergenceName = "reverse_kl"
    """As for ``same_vocabulary``."""
    top_k: int | None = Field(None, ge=2)
    """Compare only so many shared tokens, those that the student finds most probable; default: all of them. One token
    is not enough: a distribution over it has nothing to learn."""
