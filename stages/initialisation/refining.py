"""What improves new rows once the chain has made them all, and from its options to it at work."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from alignment.vocab_tensors import Role
from stages.initialisation.task import Transplant
from stages.initializers.base import InitializerOptions

REFINERS: dict[str, str] = {
    "norm_calibration": "stages.initialisation.norm_calibration:NormCalibration",
    "token_distill": "stages.initialisation.token_distillation:TokenDistillation",
}
"""Name in a recipe -> "module:class" of the ``Refiner``."""


class Refiner(Protocol):
    """An improvement of new rows: ``Refiner(options, transplant)``, then ``refine``.

    The constructor refuses, before any row is made, what cannot work: it raises StageError with the option or input
    that is at fault and the way out.
    """

    options: InitializerOptions

    def refine(self, rows: Mapping[Role, Tensor], new: Tensor) -> dict[str, float]:
        """Change new rows in place; all others stay as they are, bit by bit.

        Args:
            rows: the model's matrices for the target vocabulary, [V_target, D] in the student's dtype, by role; a tied
                model has no ``output``.
            new: bool [V_target], the rows that are no exact copies.

        Returns:
            Numbers for the manifest.

        Raises:
            StageError: it does not work with these rows.
            StageInterrupted: the stage was asked to stop.
        """


def build_refiner(options: InitializerOptions, transplant: Transplant) -> Refiner:
    """The refiner that ``options`` describes, checked against ``transplant``.

    Raises:
        StageError: it cannot work on this student.
    """
    module, _, name = REFINERS[options.method].partition(":")
    return getattr(importlib.import_module(module), name)(options, transplant)
