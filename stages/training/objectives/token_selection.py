"""Cross-entropy of selected chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.output import LossOutput
from losses.token_selection import selected_cross_entropy
from stages.objectives.token_selection import SelectedCrossEntropyOptions
from stages.training.data.batch import Batch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import Pair
from stages.training.objectives.chunk_scores import aligned_scores


class SelectedCrossEntropy:
    """Negative log-probability of the chunks on which the student beats its teacher by most."""

    auxiliary = None

    def __init__(self, options: SelectedCrossEntropyOptions, pair: Pair) -> None:
        self._options = options
        self.teacher_reads = self.student_reads = Reads(label=True)

    def _apply(self, batch: Batch, teacher: Signals, label_logp: Tensor) -> LossOutput:
        return selected_cross_entropy(
            aligned_scores(batch.teacher, teacher.label_logp),
            aligned_scores(batch.student, label_logp),
            batch.student.window,
            batch.num_chunks,
            share=self._options.keep,
        )

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        # How many chunks are kept depends on the alignment alone, which ones on the scores.
        unknown = torch.zeros_like(batch.student.ids, dtype=torch.float32)
        return self._apply(batch, teacher, unknown).count.to(torch.float64).view(1)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        return self._apply(batch, teacher, student.label_logp)
