"""Options of dual-space distillation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.objectives.distributions import DivergenceName, DivergenceOptions


class DskdOptions(DivergenceOptions):
    """Dual-space knowledge distillation (arXiv 2406.17328, 2504.11426), through two trained projectors."""

    alignment: Literal["eta", "cma"] = "eta"
    """Which positions meet. ``eta``, exact token alignment: those that predict the same token of the same text.
    ``cma``, cross-model attention: every position, with those of the other model that a trained attention picks."""
    projectors: Literal["pseudo_inverse", "random"] = "pseudo_inverse"
    """How the projectors start: so that the other model's head says the same on shared tokens, or at random."""
    divergence: DivergenceName = "skew_reverse_kl"
    """In the student's space, as for ``same_vocabulary``; in the teacher's it is forward KL."""
    temperature: float = Field(2.0, gt=0)
    """Both models' logits are divided by it in either space; the loss is not multiplied by its square."""

    @property
    def trains_projector(self) -> bool:
        return True
