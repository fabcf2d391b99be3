"""Objectives that need no teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.output import LossOutput
from losses.sft import cross_entropy_loss
from stages.objectives.tokens import CrossEntropyOptions
from stages.training.data.batch import Batch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import Pair


class CrossEntropy:
    """Mean negative log-probability of the student's tokens."""

    teacher_reads = Reads()
    student_reads = Reads(label=True)
    auxiliary = None

    def __init__(self, options: CrossEntropyOptions, pair: Pair) -> None:
        """It has no options beside its weight."""

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        return batch.student.scored.sum(dtype=torch.float64).view(1)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        return cross_entropy_loss(student.label_logp, batch.student.scored)
