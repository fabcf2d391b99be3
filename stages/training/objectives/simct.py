"""SimCT on the common vocabulary of two tokenizers."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.chunks import aligned_rows, chunk_valid, token_coverage
from losses.output import LossOutput
from losses.same_vocab import row_divergence
from losses.simct import SharedTokens, realised_units, simct_loss
from stages.objectives.simct import SimCtOptions
from stages.training.data.batch import Batch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import Pair
from stages.training.objectives.text_scores import aligned_scores


class SimCt:
    """Preferences among the shared tokens and the text that follows, where both models predict the same chunk."""

    teacher_reads = student_reads = Reads(label=True)
    auxiliary = None

    def __init__(self, options: SimCtOptions, pair: Pair) -> None:
        self._options = options
        shared = pair.shared_tokens()
        self._shared = SharedTokens(torch.from_numpy(shared.teacher), torch.from_numpy(shared.student))

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        rows = aligned_rows(batch.teacher, batch.student, batch.num_chunks)
        return torch.tensor([len(rows.chunk)], dtype=torch.float64, device=rows.chunk.device)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        rows = aligned_rows(batch.teacher, batch.student, batch.num_chunks)
        shared = self._shared_on(rows.chunk.device)
        units = realised_units(
            aligned_scores(batch.teacher, teacher.label_logp),
            aligned_scores(batch.student, student.label_logp),
            (batch.teacher.ids.flatten()[rows.teacher + 1], batch.student.ids.flatten()[rows.student + 1]),
            rows,
            batch.num_chunks,
            shared,
        )
        loss = simct_loss(
            teacher.predictions.at(rows.teacher),
            student.head.at(rows.student),
            units,
            shared,
            divergence=row_divergence(self._options.divergence),
            temperature=self._options.temperature,
        )
        return loss._replace(metrics=loss.metrics | {"token_coverage": _coverage(batch)})

    def _shared_on(self, device: torch.device) -> SharedTokens:
        self._shared = SharedTokens(*(ids.to(device) for ids in self._shared))
        return self._shared


def _coverage(batch: Batch) -> Tensor:
    valid = chunk_valid(batch.teacher.scored, batch.teacher.chunk, batch.num_chunks)
    valid = valid & chunk_valid(batch.student.scored, batch.student.chunk, batch.num_chunks)
    return token_coverage(batch.student.scored, batch.student.chunk, valid)
