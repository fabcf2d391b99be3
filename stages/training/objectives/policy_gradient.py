"""The policy gradient on the student's own text."""

from __future__ import annotations

from losses.chunks import AlignedScores
from losses.output import LossOutput
from losses.policy_gradient import policy_gradient_loss
from stages.objectives.policy_gradient import PolicyGradientOptions
from stages.training.data.batch import Batch
from stages.training.objectives.base import Pair
from stages.training.objectives.text_scores import TextScores


def policy_gradient(options: PolicyGradientOptions, pair: Pair) -> TextScores:
    """Advantages of the chunks that the student wrote, by the teacher's log-probabilities of them; a unit is a student
    token."""

    def compare(batch: Batch, teacher: AlignedScores, student: AlignedScores) -> LossOutput:
        return policy_gradient_loss(
            teacher,
            student,
            batch.num_chunks,
            credit=options.credit,
            max_chunk_tokens=options.max_chunk_tokens,
            advantage_clip=options.advantage_clip,
        )

    return TextScores(compare)
