"""DPCA: a chunk's log-probability under the teacher, shared out over the student's tokens (arXiv 2606.09456).

A chunk of m student tokens has the log-probability T under the teacher and S under the student, the sum of its tokens'
``s_i``. Token i gets the advantage ``A_i = w_i (T - S)`` and the target ``s_i + A_i``; the shares ``w_i`` add up to 1:

* ``additive``: ``w_i = 1 / m``, the smallest change of the ``s_i`` that gives the chunk the teacher's probability;
* ``multiplicative``: ``w_i = s_i / S``, hence ``log q_i = (T / S) s_i``, as in the paper.

The paper trains on the student's own samples with the policy gradient ``-A_i d s_i``. That is the gradient of the
squared distance to a fixed target, ``A_i^2 / 2``, which is what is minimised here, on the text at hand; a clipped
advantage is the gradient of Huber's loss. With ``additive`` this is the gradient of the value reported, for then it is
``(T - S)^2 / (2 m)`` a chunk. With ``multiplicative`` it is not, and no function has it for its gradient: the targets
move with the student, and the derivatives of one token's advantage by another's score are not symmetric.

One number a chunk is all that the teacher says: how to divide it within the chunk is the student's own guess.

Legend: B sequences, T tokens, C chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.chunks import AlignedScores, chunk_sizes, chunk_sums, chunk_valid, token_coverage
from losses.output import LossOutput, ratio

SHARES = ("additive", "multiplicative")


def dpca_loss(
    teacher: AlignedScores,
    student: AlignedScores,
    num_chunks: int,
    *,
    shares: str = "additive",
    max_chunk_tokens: int | None = 6,
    advantage_clip: float | None = 5.0,
) -> LossOutput:
    """Half the squared distance of each student token's log-probability to its share of the teacher's.

    The units are student tokens in chunks that are valid on both sides and short enough; their number follows from the
    alignment alone. Needs the log-probabilities of the text's tokens under the teacher and nothing else.
    Differentiable in the student's scores only; targets are constants.

    Args:
        teacher, student: scores of the same B texts, without boundaries; T may differ, chunk ids name the same chunks.
        num_chunks: C, at least one more than the largest chunk id.
        shares: ``additive`` or ``multiplicative``, see the top of this module.
        max_chunk_tokens: chunks of more student tokens are left out; None keeps all.
        advantage_clip: nats beyond which an advantage pulls no harder; None for no clipping.

    Returns:
        Sum over the tokens and their number; metrics: ``token_coverage`` (scored student tokens that count),
        ``too_long_share`` (of the tokens in valid chunks, those in too long ones), ``advantage`` (its mean size) and
        ``clipped_share``.

    Raises:
        ValueError: the shares are unknown.
    """
    if shares not in SHARES:
        raise ValueError(f"unknown shares {shares!r}; known: {', '.join(SHARES)}")
    valid = chunk_valid(teacher.scored, teacher.chunk_ids, num_chunks)
    valid = valid & chunk_valid(student.scored, student.chunk_ids, num_chunks)
    sizes = chunk_sizes(student.chunk_ids, num_chunks)
    kept = valid if max_chunk_tokens is None else valid & (sizes <= max_chunk_tokens)
    chunk = student.chunk_ids.long().clamp(min=0)
    in_kept = (student.chunk_ids >= 0) & kept.gather(1, chunk)

    logp = student.label_logp.masked_fill(~in_kept, 0)
    gaps = chunk_sums(teacher.label_logp.detach(), teacher.chunk_ids, num_chunks)
    gaps = gaps - chunk_sums(logp.detach(), student.chunk_ids, num_chunks)
    advantage = token_advantages(gaps, logp.detach(), student.chunk_ids, sizes, shares).masked_fill(~in_kept, 0)
    losses, clipped = _distances(logp, advantage, advantage_clip)
    count = in_kept.sum()
    return LossOutput(
        total=losses.sum(),
        count=count,
        metrics={
            "token_coverage": token_coverage(student.scored, student.chunk_ids, kept),
            "too_long_share": ratio((sizes * (valid & ~kept)).sum(), (sizes * valid).sum()),
            "advantage": ratio(advantage.abs().sum(), count),
            "clipped_share": ratio(clipped.sum(), count),
        },
    )


def _distances(logp: Tensor, advantage: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """``[B, T]`` half the squared distance of each score to its target, Huber's beyond ``clip``; and where that is.

    Args:
        logp: ``[B, T]`` scores of the student, with gradient.
        advantage: ``[B, T]`` how far above each of them its target is.
        clip: nats beyond which the distance grows linearly; None for never.
    """
    target = logp.detach() + advantage
    if clip is None:
        return F.mse_loss(logp, target, reduction="none") / 2, torch.zeros_like(advantage, dtype=torch.bool)
    return F.huber_loss(logp, target, reduction="none", delta=clip), advantage.abs() > clip


def token_advantages(gaps: Tensor, logp: Tensor, chunk_ids: Tensor, sizes: Tensor, shares: str) -> Tensor:
    """``[B, T]`` share of each student token in its chunk's gap; tokens without a chunk get anything.

    Args:
        gaps: ``[B, C]`` the teacher's log-probability of each chunk less the student's.
        logp: ``[B, T]`` log-probability of each student token, 0 where it is in no chunk that counts.
        chunk_ids: ``[B, T]`` the token's chunk or -1.
        sizes: ``[B, C]`` student tokens of each chunk.
        shares: ``additive`` or ``multiplicative``, see the top of this module.
    """
    chunk = chunk_ids.long().clamp(min=0)
    gap = gaps.gather(1, chunk)
    equal = gap / sizes.gather(1, chunk).clamp(min=1)
    if shares == "additive":
        return equal
    total = chunk_sums(logp, chunk_ids, gaps.shape[1]).gather(1, chunk)
    # A chunk that the student is certain of has no proportions to share by.
    return torch.where(total < 0, gap * (logp / total), equal)
