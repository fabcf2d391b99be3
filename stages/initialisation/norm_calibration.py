"""New rows with the length of the copied rows of their script."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from alignment.initializers.norms import median_norms, rescale, row_norms
from alignment.token_table import TokenKind
from alignment.vocab_tensors import Role
from stages.initialisation.scripts import token_scripts
from stages.initialisation.task import Transplant
from stages.initializers.refiners import NormCalibrationOptions
from stages.stage import StageError

_BLOCK_ROWS = 4096


class NormCalibration:
    """Rescales every new row to the median norm of copied rows ("Beyond Initialization Loss", arXiv 2608.03494).

    Special tokens are no example for the length of others. Rows of norm 0 have no direction and stay 0.
    """

    def __init__(self, options: NormCalibrationOptions, transplant: Transplant) -> None:
        self.options = options
        self._transplant = transplant
        if not self._examples(transplant.alignment.copied).any():
            raise StageError(
                "refine: norm_calibration takes the length of rows from tokens that both vocabularies have, and there "
                "are none; remove it"
            )

    def refine(self, rows: Mapping[Role, Tensor], new: Tensor) -> dict[str, float]:
        """See ``Refiner``; returns the median norms of the new rows before and after, by role.

        Raises:
            StageError: no row was copied, all copied ones are zero, or a role has no matrix of its own.
        """
        self._check_roles(rows)
        target = self._transplant.target
        group = token_scripts(target) if self.options.target == "script" else np.full(len(new), -1)
        ids = new.nonzero().flatten()
        numbers = {}
        for role in self.options.roles:
            before = row_norms(rows[role])
            try:
                after = median_norms(before, self._examples(~new.numpy()), group, self.options.fewest)
            except ValueError:
                raise StageError(
                    f"refine: norm_calibration found no copied row of the {role} matrix with a norm above 0 to take "
                    "the median of; remove it, or set copy_exact: true"
                ) from None
            for block in ids.split(_BLOCK_ROWS):
                rows[role][block] = rescale(rows[role][block], torch.from_numpy(after)[block])
            if len(ids):
                numbers[f"{role}.median_norm_before"] = float(np.median(before[ids]))
                numbers[f"{role}.median_norm"] = float(np.median(after[ids]))
        return numbers

    def _examples(self, copied: np.ndarray) -> np.ndarray:
        return copied & (self._transplant.target.kinds != TokenKind.SPECIAL)

    def _check_roles(self, rows: Mapping[Role, Tensor]) -> None:
        if "output" in rows:
            return
        if "output" in self.options.roles:
            raise StageError(
                "refine: norm_calibration.roles names output, but the model has one matrix for input and output; write "
                "roles: [input], or untie it"
            )
        self._transplant.progress(
            "warning: norm_calibration changes the output rows of a tied model as well: longer ones take probability "
            "from all other tokens, and the model may become useless"
        )
