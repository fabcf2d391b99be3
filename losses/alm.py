"""Approximate likelihood matching (Minixhofer et al., arXiv 2503.20083; our specification: alm.md).

Legend: B sequences, T tokens, C chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from losses.chunks import (
    AlignedScores,
    ChunkScores,
    chunk_adjacent,
    chunk_last,
    chunk_sizes,
    chunk_sums,
    chunk_valid,
    merge_chunks,
    token_coverage,
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


def alm_from_token_scores(
    teacher: AlignedScores,
    student: AlignedScores,
    num_chunks: int,
    *,
    temperature: float = 5.0,
    divergence: str = "kl",
    gamma: float | None = 0.1,
    max_group_chunks: int | None = None,
    debias: bool = True,
) -> LossOutput:
    """Approximate likelihood matching from token scores: chunk sums, gamma merge, outcome debiasing, divergence.

    The number of groups follows from the teacher and the chunks alone. The teacher's boundary log-probabilities are
    read for merging and debiasing, the student's for debiasing only.

    Args:
        teacher, student: scores of the same B texts; T may differ, chunk ids name the same chunks.
        num_chunks: C, at least one more than the largest chunk id.
        temperature, divergence: as for ``alm_loss``.
        gamma: a chunk ends only where the teacher's boundary probability is above gamma (``merge_chunks``); None keeps
            every chunk by itself.
        max_group_chunks: most chunks that gamma may fuse; None for no limit.
        debias: add the log-probability of a boundary after the chunk, on both sides.

    Returns:
        Sum over the valid groups and their number. Metrics beside those of ``alm_loss``: ``chunk_coverage`` (valid
        chunks of all chunks), ``token_coverage`` (scored student tokens in valid chunks), ``chunks_per_group``,
        ``fused_share`` (chunks that joined the one before them), ``open_group_share`` (groups closed without boundary
        evidence), and for either side ``tokens_per_chunk`` and ``tokens_per_group``.

    Raises:
        ValueError: a boundary log-probability is needed and missing.
    """
    valid = torch.ones((len(teacher.chunk_ids), num_chunks), dtype=torch.bool, device=teacher.chunk_ids.device)
    for side in (teacher, student):
        valid = valid & chunk_valid(side.scored, side.chunk_ids, num_chunks)
    logp = [chunk_sums(side.label_logp, side.chunk_ids, num_chunks) for side in (teacher, student)]
    boundary = [torch.zeros_like(sums) for sums in logp]
    if debias or gamma is not None:
        boundary[0] = _boundary_at_chunk_ends("teacher", teacher, valid, num_chunks)
    if debias:
        boundary[1] = _boundary_at_chunk_ends("student", student, valid, num_chunks)
    groups, open_groups = ChunkScores(*logp, *boundary, valid), torch.zeros_like(valid)
    if gamma is not None:
        adjacent = chunk_adjacent(teacher.chunk_ids, num_chunks) & chunk_adjacent(student.chunk_ids, num_chunks)
        groups, open_groups = merge_chunks(groups, adjacent, gamma, max_group_chunks)
    teacher_logp, student_logp = groups.teacher_logp, groups.student_logp
    if debias:
        teacher_logp = teacher_logp + groups.teacher_boundary
        student_logp = student_logp + groups.student_boundary
    loss = alm_loss(teacher_logp, student_logp, temperature=temperature, divergence=divergence, valid=groups.valid)
    merging = {
        "chunks_per_group": ratio(valid.sum(), loss.count),
        "fused_share": ratio(valid.sum() - loss.count, valid.sum()),
        "open_group_share": ratio(open_groups.sum(), loss.count),
    }
    return loss._replace(metrics=loss.metrics | merging | _chunk_metrics(teacher, student, valid, loss.count))


def _with_slope(value: Tensor, slope: Tensor, variable: Tensor) -> Tensor:
    """``value``, with ``slope`` as its derivative with respect to ``variable``; both carry no graph of their own."""
    return value + (variable - variable.detach()) * slope


def _boundary_at_chunk_ends(name: str, side: AlignedScores, valid: Tensor, num_chunks: int) -> Tensor:
    if side.boundary_logp is None:
        raise ValueError(
            f"debiasing (and, of the teacher, merging by gamma) needs the {name}'s boundary_logp: give token_scores a"
            " boundary_mask, or set gamma=None and debias=False"
        )
    boundary = chunk_last(side.boundary_logp, side.chunk_ids, num_chunks)
    # A model that gives NaN gives it for the tokens too, and so a loss that says it. An accelerator would have to be
    # waited for.
    asked = ~chunk_sums(side.label_logp, side.chunk_ids, num_chunks).isnan()
    if not boundary.is_cuda and (boundary.isnan() & valid & asked).any():
        raise ValueError(
            f"the {name}'s boundary_logp is NaN at the end of a valid chunk: ask token_scores for it with"
            " boundary_rows=chunk_end_mask(chunk_ids, num_chunks)"
        )
    return boundary


def _chunk_metrics(
    teacher: AlignedScores, student: AlignedScores, valid: Tensor, num_groups: Tensor
) -> dict[str, Tensor]:
    """How much of the text takes part in the loss, and in how long pieces."""
    num_chunks = valid.shape[1]
    sizes = {
        "teacher": chunk_sizes(teacher.chunk_ids, num_chunks),
        "student": chunk_sizes(student.chunk_ids, num_chunks),
    }
    exists = (sizes["teacher"] > 0) | (sizes["student"] > 0)
    metrics = {
        "chunk_coverage": ratio(valid.sum(), exists.sum()),
        "token_coverage": token_coverage(student.scored, student.chunk_ids, valid),
    }
    for name, size in sizes.items():
        tokens = (size * valid).sum()
        metrics[f"{name}_tokens_per_chunk"] = ratio(tokens, valid.sum())
        metrics[f"{name}_tokens_per_group"] = ratio(tokens, num_groups)
    return metrics
