"""Dual-space knowledge distillation: teacher and student meet in the student's space and in the teacher's.

Sources: DSKD (arXiv 2406.17328, sections 3.1 and 3.2) and DSKDv2 (arXiv 2504.11426). Projected hidden states of one
model go through the other's frozen output head, so that both distributions of a comparison come from one head:

* student's space: ``CE(projected teacher, labels) + [projected teacher's argmax is the label] *
  divergence(sg(projected teacher), student)``. The cross-entropy trains the projector alone.
* teacher's space: ``KL(teacher, projected student)``.

Differences from the authors' code, on purpose: each space's sum is divided by the number of its own positions (theirs
divides both by the student's); standard deviations are those of the whole step's labelled positions rather than of a
padded micro-batch.

Legend: N student rows, M teacher rows, D_S and D_T widths, B rows of one or several sequences, n student and m teacher
tokens of such a row.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from losses.output import LossOutput, ratio
from losses.predictions import LinearHead
from losses.rowwise import RowwiseLoss, rowwise_loss
from losses.same_vocab import RowDivergence, kl, tempered

_BLOCK_ROWS = 16_384
_STUDENT_SPACE_METRICS = ("projector_cross_entropy", "projector_accuracy", "student_space")
_SMALLEST_DEVIATION = 1e-8


def dual_space_loss(
    student: LinearHead,
    teacher: LinearHead,
    projected_teacher: Tensor,
    projected_student: Tensor,
    labels: Tensor,
    *,
    divergence: RowDivergence,
    temperature: float = 2.0,
    teacher_row_weight: Tensor | float = 1.0,
) -> LossOutput:
    """Compare both models in both spaces; the units are the student's rows.

    Needs the teacher's final hidden states and its output head.

    Args:
        student: at N rows; gets gradients.
        teacher: at M rows; gets none.
        projected_teacher: [N, D_S], the teacher's states for the student's rows.
        projected_student: [M, D_T], the student's states for the teacher's rows.
        labels: int64 [N], the tokens that the student's rows predict.
        divergence: in the student's space, between the teacher's log-probabilities and the student's.
        temperature: of both comparisons, without a factor of its square; the cross-entropy has none.
        teacher_row_weight: of a teacher row, N / M of the whole step for two means with the same weight.
    """
    ours = _in_student_space(student, projected_teacher, labels, divergence, temperature)
    theirs = _in_teacher_space(teacher, projected_student, temperature)
    rows, teacher_rows = labels.new_tensor(len(student)), labels.new_tensor(len(teacher))
    # All of them without any row too: processes add their metrics up and must agree on which there are.
    nothing = torch.zeros(2, device=labels.device)
    metrics = {name: ours.metrics.get(name, nothing) for name in _STUDENT_SPACE_METRICS}
    metrics["teacher_space"] = ratio(theirs.total, teacher_rows)
    return LossOutput(ours.total + teacher_row_weight * theirs.total, rows, metrics)


def _in_student_space(
    student: LinearHead, projected_teacher: Tensor, labels: Tensor, divergence: RowDivergence, temperature: float
) -> RowwiseLoss:
    def losses_of(rows: slice, logits: list[Tensor], _: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        own, projected = logits
        cross_entropy = torch.nn.functional.cross_entropy(projected, labels[rows], reduction="none")
        right = projected.argmax(-1) == labels[rows]
        distances = divergence(tempered(projected.detach(), temperature), tempered(own, temperature))
        distances = distances.masked_fill(~right, 0)
        values = zip(_STUDENT_SPACE_METRICS, (cross_entropy, right, distances), strict=True)
        number = labels.new_tensor(len(right))
        return cross_entropy + distances, {name: ratio(each.sum(), number) for name, each in values}

    return rowwise_loss(losses_of, [student, _frozen(student, projected_teacher)])


def _in_teacher_space(teacher: LinearHead, projected_student: Tensor, temperature: float) -> RowwiseLoss:
    def losses_of(rows: slice, logits: list[Tensor], _: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return kl(tempered(teacher.logits(rows), temperature), tempered(logits[0], temperature)), {}

    return rowwise_loss(losses_of, [_frozen(teacher, projected_student)])


def _frozen(head: LinearHead, hidden: Tensor) -> LinearHead:
    """The head, without gradient, at other hidden states."""
    bias = None if head.bias is None else head.bias.detach()
    return replace(head, hidden=hidden, weight=head.weight.detach(), bias=bias)


def head_projection(source: Tensor, target: Tensor) -> Tensor:
    """The linear map of hidden states under which the target's head says what the source's head says (DSKDv2).

    ``P = pinv(target) @ source``, for rows of the same tokens in the same order: ``target @ (P @ h)`` is then the least
    squares fit of ``source @ h`` for every hidden state h of the source model. Biases, scales and soft caps of the
    logits have no part in it.

    Args:
        source: [V, D_source], output embeddings of the model whose states are projected.
        target: [V, D_target], of the model into whose space they go.

    Returns:
        float64 [D_target, D_source], the weight of a linear layer without bias.
    """
    # By normal equations, summed over blocks of rows: a decomposition of [V, D] itself would take minutes. Hidden sizes
    # are small beside V, and float64 leaves room for the squared condition number.
    gram = target.new_zeros(target.shape[1], target.shape[1], dtype=torch.float64)
    cross = target.new_zeros(target.shape[1], source.shape[1], dtype=torch.float64)
    for source_rows, target_rows in zip(source.split(_BLOCK_ROWS), target.split(_BLOCK_ROWS), strict=True):
        target_rows = target_rows.double()
        gram.addmm_(target_rows.t(), target_rows)
        cross.addmm_(target_rows.t(), source_rows.double())
    return torch.linalg.pinv(gram, hermitian=True) @ cross


def cross_model_attention(
    query: Tensor, key: Tensor, query_sequence: Tensor, key_sequence: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of the student's positions to the teacher's, and of the teacher's to the student's (DSKD, eq. 8-11).

    Not causal, as in the paper: a position's own target token is part of its query or key, and that is what the two
    are matched by.

    Args:
        query: [B, n, 2 D_T], of the student's positions.
        key: [B, m, 2 D_T], of the teacher's.
        query_sequence: int64 [B, n], the sequence that a position belongs to, of which a row may hold several; -1 for
            positions that take no part. A sequence has some that do on both sides or on none.
        key_sequence: int64 [B, m].

    Returns:
        Weights [B, n, m] and [B, m, n] in float32 (float64 for float64): each row adds up to 1, or is 0 where its
        position takes no part.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(dtype) @ key.to(dtype).transpose(1, 2) / math.sqrt(query.shape[-1])
    outside = (query_sequence[:, :, None] != key_sequence[:, None, :]) | (query_sequence < 0)[:, :, None]
    scores = scores.masked_fill(outside, torch.finfo(dtype).min)
    return (
        scores.softmax(2).masked_fill(outside, 0),
        scores.transpose(1, 2).softmax(2).masked_fill(outside.transpose(1, 2), 0),
    )


def moments(values: Tensor) -> Tensor:
    """Number, sum and sum of squares of all entries: float64 [3], to be added up over micro-batches and ranks."""
    values = values.detach().double()
    return torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])


def standard_deviation(moments: Tensor) -> Tensor:
    """Of entries with these moments: float64 scalar, above 0."""
    number, total, squares = moments
    number = number.clamp(min=1)
    return (squares / number - (total / number).square()).clamp(min=_SMALLEST_DEVIATION**2).sqrt()
