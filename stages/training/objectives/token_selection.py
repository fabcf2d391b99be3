"""Cross-entropy of selected chunks."""

from __future__ import annotations

from losses.chunks import AlignedScores
from losses.output import LossOutput
from losses.token_selection import selected_cross_entropy as selected_cross_entropy_loss
from stages.objectives.token_selection import SelectedCrossEntropyOptions
from stages.training.data.batch import Batch
from stages.training.objectives.base import Pair
from stages.training.objectives.text_scores import TextScores


def selected_cross_entropy(options: SelectedCrossEntropyOptions, pair: Pair) -> TextScores:
    """Negative log-probability of the chunks on which the student beats its teacher by most; a unit is a chunk that is
    kept. How many are depends on the alignment alone, which ones on the scores."""

    def compare(batch: Batch, teacher: AlignedScores, student: AlignedScores) -> LossOutput:
        return selected_cross_entropy_loss(teacher, student, batch.student.window, batch.num_chunks, share=options.keep)

    return TextScores(compare)
