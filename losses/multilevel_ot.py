"""MultiLevelOT (arXiv 2412.14528): distributions of a sequence compared by rank, together and as a set.

Every sequence ranks each vocabulary by the probability that it gives its tokens, summed over the sequence's compared
positions, and keeps the first k. With t_n and s_n the teacher's and the student's probabilities of their kept tokens
at position n, in the order of rank, and t'_n and s'_n the same divided by their sum, the loss of a sequence is

    sum_n |t_n - s_n|_1  +  log_weight sum_n KL(t'_n || s'_n)  +  sinkhorn_weight sum_mn P_mn C_mn

with C_mn = |t_m - s_n|_1. The plan P comes from Sinkhorn's iterations: the kernel exp(-C / regularization), its rows
and then its columns scaled to add up to 1, ``iterations`` times. The gradient runs through the iterations.

Teacher signal: the whole distribution (the ranking asks every position for the same tokens). Unit: a compared
position. Not a divergence: the plan is blurred by its regularization, so the third term is above 0 at equality.

Different from the paper and its released code on purpose: the ranking is of the sequence, where the code's depends on
what else is in the micro-batch; KL with the teacher's entropy instead of cross-entropy, which has the same gradient
and is 0 at equality; logits are neither divided by their standard deviation nor are probabilities put through a second
softmax; all three terms see the same positions of both models and no padding; the third is per position, and its
weight is the whole one, where the code multiplies by 0.001 once more; cross-entropy is a loss of its own.

Legend: B sequences, N compared positions, P most positions of a sequence, K kept tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from losses.output import LossOutput, ratio
from losses.predictions import LinearHead, Predictions
from losses.ranked_probabilities import log_probs_at, most_probable_tokens, read_log_probs


def multilevel_ot_loss(
    teacher: Predictions,
    student: LinearHead,
    sequence: Tensor,
    num_sequences: int,
    *,
    k: int = 50,
    log_weight: float = 0.1,
    sinkhorn_weight: float = 0.1,
    regularization: float = 0.1,
    iterations: int = 20,
) -> LossOutput:
    """The three terms, summed over positions.

    Args:
        teacher: at the N compared positions.
        student: at the same positions, in the same order.
        sequence: int64 [N], ascending, the sequence of each position.
        num_sequences: B.
        k: tokens that are kept; at most as many as the smaller vocabulary has.

    Returns:
        The sum over N positions, and the means of the terms as the metrics ``absolute``, ``logarithmic`` and
        ``sinkhorn``; ``kept`` is the mean teacher mass on the kept tokens.

    Raises:
        ValueError: the teacher's distributions are not whole.
    """
    if not teacher.complete:
        raise ValueError("MultiLevelOT ranks whole distributions, but the teacher gives its most probable tokens only")
    k = min(k, teacher.vocab_size, student.vocab_size)
    teacher_logp = read_log_probs(teacher, most_probable_tokens(teacher, sequence, num_sequences, k)[sequence])
    student_logp = log_probs_at(student, most_probable_tokens(student, sequence, num_sequences, k)[sequence])
    teacher_logp = teacher_logp.to(student_logp.dtype)

    kept_teacher, kept_student = teacher_logp.exp(), student_logp.exp()
    absolute = (kept_teacher - kept_student).abs().sum()
    teacher_share, student_share = teacher_logp.log_softmax(-1), student_logp.log_softmax(-1)
    logarithmic = (teacher_share.exp() * (teacher_share - student_share)).sum()
    lengths = torch.bincount(sequence, minlength=num_sequences)
    valid = torch.arange(int(lengths.max()), device=sequence.device) < lengths[:, None]
    sinkhorn = sinkhorn_cost(
        _padded(kept_teacher, valid),
        _padded(kept_student, valid),
        valid,
        regularization=regularization,
        iterations=iterations,
    ).sum()

    count = torch.tensor(len(sequence), device=sequence.device)
    terms = {"absolute": absolute, "logarithmic": logarithmic, "sinkhorn": sinkhorn, "kept": kept_teacher.sum()}
    total = absolute + log_weight * logarithmic + sinkhorn_weight * sinkhorn
    return LossOutput(total, count, {name: ratio(term, count) for name, term in terms.items()})


def sinkhorn_cost(
    first: Tensor, second: Tensor, valid: Tensor, *, regularization: float = 0.1, iterations: int = 20
) -> Tensor:
    """L1 cost of moving one set of vectors onto another of the same size, by Sinkhorn's plan; differentiable.

    Every vector has weight 1, so the cost grows with the number of vectors.

    Args:
        first, second: [B, P, K], masses that add up to 1 at most.
        valid: bool [B, P], which vectors are in the sets.
        regularization: at least 0.05, or costs, which are 2 at most, underflow in float32.

    Returns:
        [B].
    """
    cost = torch.cdist(first, second, p=1)
    pairs = valid[:, :, None] & valid[:, None, :]
    kernel = (-cost / regularization).exp() * pairs
    # Rows and columns of padding are 0 throughout; adding 1 to their sums keeps them so.
    padding = (~valid)[:, :, None].to(cost.dtype)
    columns = torch.ones_like(padding)
    for _ in range(iterations):
        rows = 1 / (kernel @ columns + padding)
        columns = 1 / (kernel.mT @ rows + padding)
    plan = rows * kernel * columns.mT
    return (plan * cost).sum((1, 2))


def _padded(values: Tensor, valid: Tensor) -> Tensor:
    """Rows [N, K] in order at the valid places of [B, P, K], 0 elsewhere."""
    padded = values.new_zeros(*valid.shape, values.shape[1])
    return padded.masked_scatter(valid[:, :, None], values)
