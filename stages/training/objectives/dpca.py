"""DPCA on the text's own tokens."""

from __future__ import annotations

from losses.chunks import AlignedScores
from losses.dpca import dpca_loss
from losses.output import LossOutput
from stages.objectives.dpca import DpcaOptions
from stages.training.data.batch import Batch
from stages.training.objectives.base import Pair
from stages.training.objectives.text_scores import TextScores


def dpca(options: DpcaOptions, pair: Pair) -> TextScores:
    """The teacher's chunk log-probabilities, shared out over the student's tokens; a unit is a student token."""

    def compare(batch: Batch, teacher: AlignedScores, student: AlignedScores) -> LossOutput:
        return dpca_loss(
            teacher,
            student,
            batch.num_chunks,
            shares=options.shares,
            max_chunk_tokens=options.max_chunk_tokens,
            advantage_clip=options.advantage_clip,
        )

    return TextScores(compare)
