"""SimCT: both models' preferences among the shared tokens and the text that follows (arXiv 2605.07711).

Where both models predict the start of the same chunk, each scores a common set of candidates: every token that the two
vocabularies share, by its log-probability, and the chunk itself (the *unit*), by the mean log-probability of its
tokens; ``softmax(score / temperature)`` makes distributions of the scores, which a divergence compares. A unit that is
one shared token on both sides is among the candidates already.

These distributions are not probabilities of text: a mean over a unit's tokens favours units of more tokens, and scaling
all of a model's probabilities by one factor changes nothing. The loss is zero when the scores differ by a constant.

On purpose unlike the released code: scores are log-probabilities, not logits, which are no scores of a unit since their
level differs from position to position; units are the smallest chunks with bytes in common, so that a number split in
two does not take the next word with it; a unit at the end of the text counts; every row is weighted alike.

Legend: N aligned rows, U candidates, B sequences, T tokens, C chunks, V vocabulary, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from losses.chunks import AlignedRows, AlignedScores, chunk_sizes, chunk_sums
from losses.output import LossOutput, ratio
from losses.predictions import LinearHead, Predictions
from losses.rowwise import rowwise_loss
from losses.same_vocab import RowDivergence, reverse_kl, tempered


class SharedTokens(NamedTuple):
    """Pairs of token ids that mean the same; no id occurs twice.

    Attributes:
        teacher, student: int64, one entry a pair.
    """

    teacher: Tensor
    student: Tensor


class Units(NamedTuple):
    """The text that follows each of N rows, up to the next boundary of both tokenizations.

    Attributes:
        teacher, student: ``[N]`` mean log-probability of the unit's tokens; differentiable in the student's.
        shared: ``[N]`` bool, units that are one shared token on both sides.
    """

    teacher: Tensor
    student: Tensor
    shared: Tensor


def simct_rows(
    teacher_scores: Tensor, student_scores: Tensor, *, divergence: RowDivergence = reverse_kl, temperature: float = 1.0
) -> Tensor:
    """Divergence between the two models' preferences: scores ``[..., U]`` of the same candidates -> ``[...]``.

    A candidate with the score -inf on both sides does not take part.
    """
    return divergence(tempered(teacher_scores, temperature), tempered(student_scores, temperature))


def realised_units(
    teacher: AlignedScores,
    student: AlignedScores,
    next_ids: tuple[Tensor, Tensor],
    rows: AlignedRows,
    num_chunks: int,
    shared: SharedTokens,
) -> Units:
    """The unit at every aligned row, scored by teacher forcing.

    Args:
        teacher, student: scores of the same B texts; their chunk ids name the same chunks.
        next_ids: int64 ``[N]`` each, the teacher's and the student's token that follow the row.
        rows: of the chunks to compare (``losses.chunks.aligned_rows``).
        num_chunks: C.
        shared: the common vocabulary.
    """
    means = [
        (chunk_sums(side.label_logp, side.chunk_ids, num_chunks) / chunk_sizes(side.chunk_ids, num_chunks).clamp(min=1))
        .flatten()
        .index_select(0, rows.chunk)
        for side in (teacher, student)
    ]
    return Units(means[0].detach(), means[1], rows.one_to_one & _are_paired(*next_ids, shared))


def simct_loss(
    teacher: Predictions,
    student: LinearHead,
    units: Units,
    shared: SharedTokens,
    *,
    divergence: RowDivergence = reverse_kl,
    temperature: float = 1.0,
) -> LossOutput:
    """Divergence between the preferences of teacher and student among shared tokens and the unit that follows.

    The units of the loss are aligned rows. Needs the teacher's probability of every shared token.

    Args:
        teacher, student: predictions at N rows after the same bytes.
        units: the text that follows each row.
        shared: the common vocabulary.
        divergence: between distributions over candidates; reverse KL in the paper.
        temperature: of the softmax over scores.

    Returns:
        Sum over the rows and their number; metrics: ``unit_share``, rows whose unit is a candidate of its own, and
        ``teacher_shared_mass``, the teacher's probability of all shared tokens.
    """
    extra = ~units.shared

    def losses_of(rows: slice, logits: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        known = teacher.log_probs(rows).index_select(1, shared.teacher)
        (student_logits,), (student_unit,) = logits, inputs
        found = student_logits.log_softmax(-1).index_select(1, shared.student)
        scores = [
            torch.cat([tokens, unit.to(tokens.dtype).masked_fill(~extra[rows], -torch.inf)[:, None]], 1)
            for tokens, unit in ((known, units.teacher[rows]), (found, student_unit))
        ]
        mass = known.exp().sum()
        losses = simct_rows(*scores, divergence=divergence, temperature=temperature)
        return losses, {"teacher_shared_mass": ratio(mass, mass.new_tensor(len(known)))}

    result = rowwise_loss(losses_of, [student], [units.student])
    count = torch.tensor(len(extra), device=extra.device)
    nothing = {"teacher_shared_mass": ratio(count * 0, count)}
    return LossOutput(
        total=result.total,
        count=count,
        metrics=nothing | result.metrics | {"unit_share": ratio(extra.sum(), count)},
    )


def _are_paired(teacher_ids: Tensor, student_ids: Tensor, shared: SharedTokens) -> Tensor:
    """bool ``[N]``: the two tokens are one shared token."""
    return torch.isin((student_ids << 32) | teacher_ids, (shared.student << 32) | shared.teacher)
