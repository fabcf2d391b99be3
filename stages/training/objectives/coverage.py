"""The metric ``token_coverage``: how much of the text an objective teaches, under one name for all of them."""

from __future__ import annotations

from torch import Tensor

from losses.chunks import token_coverage
from losses.output import LossOutput, ratio
from stages.training.data.batch import Batch


def with_chunk_coverage(output: LossOutput, batch: Batch, chunks: Tensor) -> LossOutput:
    """Add ``token_coverage``: the student's tokens in the compared chunks, of those that are scored.

    ``chunks`` are indices into [B * num_chunks].
    """
    kept = batch.student.chunk.new_zeros(len(batch.student.ids) * batch.num_chunks)
    kept[chunks] = 1
    covered = token_coverage(batch.student.scored, batch.student.chunk, kept.view(-1, batch.num_chunks))
    return output._replace(metrics=output.metrics | {"token_coverage": covered})


def with_unit_coverage(output: LossOutput, batch: Batch) -> LossOutput:
    """Add ``token_coverage`` for an objective whose unit is a prediction of one of the student's scored tokens."""
    return output._replace(metrics=output.metrics | {"token_coverage": ratio(output.count, batch.student.scored.sum())})
