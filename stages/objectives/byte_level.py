"""Options of byte-level distillation."""

from __future__ import annotations

from pydantic import Field, model_validator

from stages.objectives.base import ObjectiveOptions


class ByteLevelOptions(ObjectiveOptions):
    """Parallel byte heads on the student (arXiv 2604.07466), thrown away after training.

    The cross-entropy of the student's own tokens, which the paper adds, is the loss ``cross_entropy``.
    """

    heads: int = Field(10, ge=1, le=128)
    """Bytes of a token that have a head; those beyond have no loss."""
    cross_entropy_weight: float = Field(1.0, ge=0)
    """Factor of the heads' cross-entropy on the bytes of the text."""
    kl_weight: float = Field(0.1, ge=0)
    """Factor of the divergence of the heads from the teacher's next bytes."""

    @model_validator(mode="after")
    def _has_a_part(self) -> ByteLevelOptions:
        if self.cross_entropy_weight == self.kl_weight == 0:
            raise ValueError("cross_entropy_weight and kl_weight are both 0: nothing is left to train on")
        return self
