"""GOLD: spans of equal text compared on the tokens that both vocabularies share, and by sorted masses on the rest.

A span is a chunk. Inside it the conditionals of the realised tokens are multiplied (chain rule), which leaves one row
of masses a model and span, not normalised by design:

    bayesian   the row that predicts the span's last token, times the probabilities of the tokens before it
    observed   the row that predicts the span's first token, times the probabilities of the tokens after it

Over the rows q of the teacher and p of the student the loss of a span is

    common_weight * JSD_beta(q, p on the common tokens) + rest_weight * sorted L1 distance(q, p on all other tokens)

A span of one token on either side, with one vocabulary for both, gives the plain JSD. For ``beta=0`` the first term
alone pushes down every student token outside the common ones by its probability times the teacher's common mass
(X-Token, arXiv 2605.21699, proposition 1): what the second term exists for.

Source: Patiño et al. 2025, "Unlocking On-Policy Distillation for Any Model Family" (Hugging Face), and TRL's GOLD
trainer, whose weights default to the matched share of the teacher's vocabulary and its complement, as ours do.

Different from TRL on purpose: the rows are those that predict the span's tokens for either merge, where TRL's
``observed`` reads one position too late, so that the row after the answer counts and the first answer token's does
not; tokens are matched by bytes, not by their strings; the student's factor takes part in the gradient through exact
log-probabilities, not clamped ones; every span counts the same, where TRL averages within and then over sequences;
masses without a counterpart are compared with 0 even where the other side has no unmatched token at all.

Legend: B sequences, T tokens, N spans, b rows of a block, V and W the vocabularies, M tokens in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from losses.chunks import TokenizedSide, aligned_rows, chunk_sums, first_token_index, last_token_index
from losses.output import LossOutput, ratio
from losses.predictions import LinearHead, Predictions
from losses.rowwise import rowwise_loss
from losses.same_vocab import jsd
from losses.uld import sorted_distance

Merge = Literal["bayesian", "observed"]


class MergedSpans(NamedTuple):
    """One model's side of N spans.

    Attributes:
        rows: int64 [N], flat positions in [B * T] whose distribution is the span's.
        factor: [N], log-probability (nats) of the span's other tokens, which that distribution is multiplied by.
    """

    rows: Tensor
    factor: Tensor


class VocabularySplit(NamedTuple):
    """Token ids of both vocabularies, sorted into common tokens and the rest.

    Attributes:
        teacher_common, student_common: int64 [M], pairs of ids of one token.
        teacher_rest, student_rest: int64, all other ids.
    """

    teacher_common: Tensor
    student_common: Tensor
    teacher_rest: Tensor
    student_rest: Tensor


def split_vocabularies(
    teacher_common: Tensor, student_common: Tensor, teacher_size: int, student_size: int
) -> VocabularySplit:
    """Complete M pairs of ids [M] by the ids in no pair."""
    rest = []
    for common, size in ((teacher_common, teacher_size), (student_common, student_size)):
        unmatched = torch.ones(size, dtype=torch.bool, device=common.device)
        unmatched[common] = False
        rest.append(unmatched.nonzero().squeeze(1))
    return VocabularySplit(teacher_common, student_common, *rest)


def merged_spans(side: TokenizedSide, label_logp: Tensor, spans: Tensor, num_chunks: int, merge: Merge) -> MergedSpans:
    """Where the merged row of every span lies in one model, and what it is multiplied by.

    Args:
        side: the model's tokens.
        label_logp: [B, T] log-probability of each token, at the token; differentiable.
        spans: int64 [N], flat chunk numbers in [B * num_chunks], valid on this side.
        merge: see the module's docstring.
    """
    index = last_token_index if merge == "bayesian" else first_token_index
    sequence = spans // max(num_chunks, 1)
    tokens = sequence * label_logp.shape[1] + index(side.chunk, num_chunks).flatten()[spans]
    others = label_logp.flatten().index_fill(0, tokens, 0.0).view_as(label_logp)
    return MergedSpans(tokens - 1, chunk_sums(others, side.chunk, num_chunks).flatten()[spans])


def gold_loss(
    teacher: Predictions,
    student: LinearHead,
    teacher_factor: Tensor,
    student_factor: Tensor,
    vocabulary: VocabularySplit,
    *,
    beta: float,
    common_weight: float,
    rest_weight: float,
) -> LossOutput:
    """JSD on common tokens and sorted L1 distance on the rest of merged rows, summed over spans.

    Args:
        teacher: at the rows of the N spans, whole distributions.
        student: at the rows of the same spans, in the same order.
        teacher_factor, student_factor: [N] log-probabilities that the rows are multiplied by; the student's is
            differentiable.
        vocabulary: on the device of the heads.
        beta: of the JSD, weight of the teacher in the mixture.
        common_weight, rest_weight: of the two terms.

    Returns:
        The sum over N spans, and the two terms' means as the metrics ``common`` and ``rest``.

    Raises:
        ValueError: the teacher's distributions are not whole.
    """
    if not teacher.complete:
        raise ValueError("GOLD compares whole distributions, but the teacher gives its most probable tokens only")
    teacher_factor = teacher_factor.detach()

    def losses_of(rows: slice, logits: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        teacher_logp = teacher.log_probs(rows) + teacher_factor[rows, None]
        student_logp = logits[0].log_softmax(-1) + inputs[0][:, None]
        common = jsd(teacher_logp[:, vocabulary.teacher_common], student_logp[:, vocabulary.student_common], beta)
        rest, _ = sorted_distance(
            teacher_logp[:, vocabulary.teacher_rest].exp(), student_logp[:, vocabulary.student_rest].exp()
        )
        number = rest.new_tensor(len(rest))
        metrics = {"common": ratio(common.sum(), number), "rest": ratio(rest.sum(), number)}
        return common_weight * common + rest_weight * rest, metrics

    total, metrics = rowwise_loss(losses_of, [student], [student_factor])
    return LossOutput(total, torch.tensor(len(student), device=total.device), metrics)


def comparable_spans(teacher: TokenizedSide, student: TokenizedSide, num_chunks: int) -> Tensor:
    """The spans that are valid on both sides: int64 [N], flat chunk numbers in [B * num_chunks]."""
    return aligned_rows(teacher, student, num_chunks).chunk
