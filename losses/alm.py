"""Approximate likelihood matching (Minixhofer et al., arXiv 2503.20083; our specification: alm.md).

Legend: B sequences, T tokens, C chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losses.chunks import (
    ChunkScores,
    chunk_adjacent,
    chunk_last,
    chunk_sums,
    chunk_valid,
    last_token_index,
    merge_chunks,
)
from losses.divergences import DIVERGENCES
from losses.output import LossOutput, ratio


def alm_loss(
    teacher_logp: Tensor,
    student_logp: Tensor,
    *,
    temperature: float = 5.0,
    divergence: str = "kl",
    valid: Tensor | None = None,
) -> LossOutput:
    """Divergence between each chunk's probability under teacher and student, as binary events.

    Differentiable in ``student_logp`` only, through closed-form slopes. The arithmetic is in float32, or in float64 if
    an input is.

    Args:
        teacher_logp, student_logp: ``[B, C]`` log-probabilities of the chunks in nats; values above 0 (rounding)
            count as 0.
        temperature: tau; the probabilities are raised to 1 / tau.
        divergence: a key of ``losses.divergences.DIVERGENCES``.
        valid: ``[B, C]`` bool, which chunks count; all by default. The others may hold anything, NaN included.

    Returns:
        Sum over the valid chunks and their number; metrics: ``teacher_logp`` and ``student_logp`` a chunk.

    Raises:
        ValueError: the divergence is unknown, the temperature not positive, or the shapes differ.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence {divergence!r}; known: {', '.join(DIVERGENCES)}")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    valid = torch.ones_like(teacher_logp, dtype=torch.bool) if valid is None else valid
    if not teacher_logp.shape == student_logp.shape == valid.shape:
        raise ValueError(
            f"teacher_logp {tuple(teacher_logp.shape)}, student_logp {tuple(student_logp.shape)} and valid"
            f" {tuple(valid.shape)} must have one shape [B, C]"
        )
    dtype = torch.promote_types(torch.promote_types(teacher_logp.dtype, student_logp.dtype), torch.float32)
    # Two equal log-probabilities: a divergence of exactly 0 with a slope of exactly 0.
    t = teacher_logp.detach().to(dtype).masked_fill(~valid, 0)
    s = student_logp.to(dtype).masked_fill(~valid, 0)
    values, slopes = DIVERGENCES[divergence](t.clamp(max=0), s.detach().clamp(max=0), temperature)
    count = valid.sum()
    return LossOutput(
        total=_with_slope(values, slopes, s).sum(),
        count=count,
        metrics={"teacher_logp": ratio(t.sum(), count), "student_logp": ratio(s.sum(), count)},
    )


class AlignedScores(NamedTuple):
    """One model's token scores on a batch of texts, with the chunk that each token belongs to.

    Attributes:
        label_logp: ``[B, T]`` log-probability of each token, at its own index (``losses.chunks.shift_scores``).
        boundary_logp: ``[B, T]`` log-probability of a boundary after each token, needed where a chunk ends; None if
            neither merging nor debiasing is wanted.
        scored: ``[B, T]`` bool, tokens that have a log-probability and take part in the loss.
        chunk_ids: ``[B, T]`` integer, the token's chunk or -1.
    """

    label_logp: Tensor
    boundary_logp: Tensor | None
    scored: Tensor
    chunk_ids: Tensor


def alm_from_token_scores(
    teacher: AlignedScores,
    student: AlignedScores,
    num_chunks: int,
    *,
    temperature: float = 5.0,
    divergence: str = "kl",
    gamma: float | None = 0.1,
    debias: bool = True,
) -> LossOutput:
    """Approximate likelihood matching from token scores: chunk sums, gamma merge, outcome debiasing, divergence.

    Args:
        teacher, student: scores of the same B texts; T may differ, chunk ids name the same chunks.
        num_chunks: C, at least one more than the largest chunk id.
        temperature, divergence: as for ``alm_loss``.
        gamma: a chunk ends only where the teacher's boundary probability is above gamma (``merge_chunks``); None keeps
            every chunk by itself.
        debias: add the log-probability of a boundary after the chunk, on both sides.

    Returns:
        Sum over the valid groups and their number. Metrics beside those of ``alm_loss``: ``chunk_coverage`` (valid
        chunks of all chunks), ``token_coverage`` (scored student tokens in valid chunks), ``chunks_per_group`` and
        ``open_group_share`` (groups closed without boundary evidence).

    Raises:
        ValueError: a boundary log-probability is needed and missing.
    """
    valid = torch.ones((len(teacher.chunk_ids), num_chunks), dtype=torch.bool, device=teacher.chunk_ids.device)
    for side in (teacher, student):
        valid = valid & chunk_valid(side.scored, side.chunk_ids, num_chunks)
    chunks = _chunk_scores(teacher, student, valid, num_chunks, needs_boundary=debias or gamma is not None)
    groups, open_groups = chunks, torch.zeros_like(valid)
    if gamma is not None:
        adjacent = chunk_adjacent(teacher.chunk_ids, num_chunks) & chunk_adjacent(student.chunk_ids, num_chunks)
        groups, open_groups = merge_chunks(chunks, adjacent, gamma)
    teacher_logp, student_logp = groups.teacher_logp, groups.student_logp
    if debias:
        teacher_logp = teacher_logp + groups.teacher_boundary
        student_logp = student_logp + groups.student_boundary
    loss = alm_loss(teacher_logp, student_logp, temperature=temperature, divergence=divergence, valid=groups.valid)
    coverage = _coverage(teacher, student, valid)
    merging = {
        "chunks_per_group": ratio(valid.sum(), loss.count),
        "open_group_share": ratio(open_groups.sum(), loss.count),
    }
    return loss._replace(metrics=loss.metrics | coverage | merging)


def _with_slope(value: Tensor, slope: Tensor, variable: Tensor) -> Tensor:
    """``value``, with ``slope`` as its derivative with respect to ``variable``; both carry no graph of their own."""
    return value + (variable - variable.detach()) * slope


def _chunk_scores(
    teacher: AlignedScores, student: AlignedScores, valid: Tensor, num_chunks: int, *, needs_boundary: bool
) -> ChunkScores:
    logp, boundary = [], []
    for name, side in (("teacher", teacher), ("student", student)):
        logp.append(chunk_sums(side.label_logp, side.chunk_ids, num_chunks))
        if needs_boundary:
            boundary.append(_boundary_at_chunk_ends(name, side, valid, num_chunks))
        else:
            boundary.append(torch.zeros_like(logp[-1]))
    return ChunkScores(*logp, *boundary, valid)


def _boundary_at_chunk_ends(name: str, side: AlignedScores, valid: Tensor, num_chunks: int) -> Tensor:
    if side.boundary_logp is None:
        raise ValueError(
            f"merging (gamma) and debiasing need the {name}'s boundary_logp: give token_scores a boundary_mask, or set"
            " gamma=None and debias=False"
        )
    boundary = chunk_last(side.boundary_logp, side.chunk_ids, num_chunks)
    if (boundary.isnan() & valid).any():
        raise ValueError(
            f"the {name}'s boundary_logp is NaN at the end of a valid chunk: ask token_scores for it with"
            " boundary_rows=chunk_end_mask(chunk_ids, num_chunks)"
        )
    return boundary


def _coverage(teacher: AlignedScores, student: AlignedScores, valid: Tensor) -> dict[str, Tensor]:
    """How much of the text takes part in the loss."""
    num_chunks = valid.shape[1]
    exists = (last_token_index(teacher.chunk_ids, num_chunks) >= 0) | (
        last_token_index(student.chunk_ids, num_chunks) >= 0
    )
    scored = student.scored.clone()
    scored[:, 0] = False
    scored_tokens = chunk_sums(scored.long(), student.chunk_ids, num_chunks)
    return {
        "chunk_coverage": ratio(valid.sum(), exists.sum()),
        "token_coverage": ratio((scored_tokens * valid).sum(), scored.sum()),
    }
