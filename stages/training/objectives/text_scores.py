"""Objectives of what both models give to the text's own tokens, which need no distribution over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from losses.chunks import AlignedScores
from losses.output import LossOutput
from stages.training.data.batch import Batch, SideBatch
from stages.training.models import Reads, Signals

Compare = Callable[[Batch, AlignedScores, AlignedScores], LossOutput]
"""The loss of a batch from the teacher's scores and the student's. Its count depends on the batch and the teacher's
scores alone."""


def aligned_scores(side: SideBatch, label_logp: Tensor, boundary_logp: Tensor | None = None) -> AlignedScores:
    """One model's token scores with the chunks of its tokens."""
    return AlignedScores(label_logp, boundary_logp, side.scored, side.chunk)


class TextScores:
    """One such objective.

    Args:
        compare: what it computes.
        teacher_boundary, student_boundary: whether it takes the mass on token boundaries from either model, too.
    """

    auxiliary = None

    def __init__(self, compare: Compare, *, teacher_boundary: bool = False, student_boundary: bool = False) -> None:
        self._compare = compare
        self.teacher_reads = Reads(label=True, boundary=teacher_boundary)
        self.student_reads = Reads(label=True, boundary=student_boundary)

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        """The number of units, which any student scores give."""
        unknown = torch.zeros_like(batch.student.ids, dtype=torch.float32)
        return self._apply(batch, teacher, unknown, unknown).count.to(torch.float64).view(1)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        """What ``compare`` makes of the scores."""
        return self._apply(batch, teacher, student.label_logp, student.boundary_logp)

    def _apply(self, batch: Batch, teacher: Signals, label_logp: Tensor, boundary_logp: Tensor | None) -> LossOutput:
        return self._compare(
            batch,
            aligned_scores(batch.teacher, teacher.label_logp, teacher.boundary_logp),
            aligned_scores(batch.student, label_logp, boundary_logp),
        )
