"""The policy gradient on the student's own text."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.output import LossOutput
from losses.policy_gradient import policy_gradient_loss
from stages.objectives.policy_gradient import PolicyGradientOptions
from stages.training.data.batch import Batch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import Pair
from stages.training.objectives.chunk_scores import aligned_scores


class PolicyGradient:
    """Advantages of the chunks that the student wrote, by the teacher's log-probabilities of them."""

    auxiliary = None

    def __init__(self, options: PolicyGradientOptions, pair: Pair) -> None:
        self._options = options
        self.teacher_reads = self.student_reads = Reads(label=True)

    def _apply(self, batch: Batch, teacher: Signals, label_logp: Tensor) -> LossOutput:
        return policy_gradient_loss(
            aligned_scores(batch.teacher, teacher.label_logp),
            aligned_scores(batch.student, label_logp),
            batch.num_chunks,
            credit=self._options.credit,
            max_chunk_tokens=self._options.max_chunk_tokens,
            advantage_clip=self._options.advantage_clip,
        )

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        # Which tokens count depends on the alignment alone, so any student scores give their number.
        unknown = torch.zeros_like(batch.student.ids, dtype=torch.float32)
        return self._apply(batch, teacher, unknown).count.to(torch.float64).view(1)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        return self._apply(batch, teacher, student.label_logp)
