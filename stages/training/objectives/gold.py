"""GOLD: merged spans, compared on the shared tokens and by rank on the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.gold import VocabularySplit, comparable_spans, gold_loss, merged_spans, split_vocabularies
from losses.output import LossOutput
from stages.objectives.gold import GoldOptions
from stages.stage import StageError
from stages.training.data.batch import Batch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import Pair
from stages.training.objectives.coverage import with_chunk_coverage


class Gold:
    """JSD on shared tokens and sorted L1 distance on the rest, over spans merged by the chain rule."""

    teacher_reads = student_reads = Reads(label=True)
    auxiliary = None

    def __init__(self, options: GoldOptions, pair: Pair) -> None:
        self._options = options
        self._vocabulary = _split(pair)
        share = len(self._vocabulary.teacher_common) / pair.teacher.view.vocab_size
        given = options.common_weight is not None
        self._weights = (options.common_weight, options.rest_weight) if given else (share, 1 - share)

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        spans = comparable_spans(batch.teacher, batch.student, batch.num_chunks)
        return torch.tensor([len(spans)], dtype=torch.float64, device=spans.device)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        spans = comparable_spans(batch.teacher, batch.student, batch.num_chunks)
        merged = [
            merged_spans(side, signals.label_logp, spans, batch.num_chunks, self._options.merge)
            for side, signals in ((batch.teacher, teacher), (batch.student, student))
        ]
        output = gold_loss(
            teacher.predictions.at(merged[0].rows),
            student.head.at(merged[1].rows),
            merged[0].factor,
            merged[1].factor,
            VocabularySplit(*(ids.to(spans.device) for ids in self._vocabulary)),
            beta=self._options.beta,
            common_weight=self._weights[0],
            rest_weight=self._weights[1],
        )
        return with_chunk_coverage(output, batch, spans)


def _split(pair: Pair) -> VocabularySplit:
    shared = pair.shared_tokens()
    if not len(shared.student):
        raise StageError("gold: the two vocabularies share no token; `uld` compares distributions without identity")
    return split_vocabularies(
        torch.from_numpy(shared.teacher),
        torch.from_numpy(shared.student),
        pair.teacher.view.vocab_size,
        pair.student.view.vocab_size,
    )
