"""What methods that compare tokens in a donor's space share: its rows, checked and by target id."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.initialisation.task import RowTask
from stages.stage import StageError


class DonorSpace:
    """The donor's rows of a task.

    Args:
        method: for messages.
        least_anchors: shared tokens that the method needs.

    Raises:
        StageError: there is no donor tensor of this role, or there are too few shared tokens.
    """

    def __init__(self, method: str, task: RowTask, least_anchors: int) -> None:
        if task.donor_rows is None or task.donor_has is None:
            raise StageError(
                f"{method} needs the rows of a model that already uses the target tokenizer, and there are none for "
                f"{task.name}: name such a model as models.donor, or use piece_mean, which needs none"
            )
        found = len(task.anchor_target)
        if found < least_anchors:
            raise StageError(
                f"{method} needs {least_anchors} tokens that student and donor share, and for {task.name} there are "
                f"{found} that may be used: ask for less, loosen 'anchors', or use piece_mean"
            )
        self._rows, self._has = task.donor_rows, task.donor_has
        self._anchor_target = task.anchor_target
        self.width = task.donor_rows.shape[1]

    def anchors(self) -> Tensor:
        """The donor's rows of the anchors, [N, D_donor] in the donor's dtype."""
        return self._rows[self._anchor_target]

    def of(self, target_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The donor's rows of some target ids, float32 [M, D_donor], zero where it has none of use; and where it has
        one, bool [M]."""
        has = self._has[target_ids]
        rows = torch.zeros(len(target_ids), self.width)
        rows[has] = self._rows[target_ids[has]].float()
        return rows, has
