"""The fused head: label and boundary log-probabilities of every token, without a ``[R, V]`` tensor.

Legend: R rows (token positions), D width of the hidden states, V rows of the head's weight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losses.fused_head import FusedHead, HeadLayout, logits_dtype

IGNORE_INDEX = -100

# What one block of logits may occupy. Small blocks read the whole weight too often, large ones only cost memory;
# the CPU's budget is the smaller because there the logits compete with the model for the same memory.
CPU_BLOCK_BYTES = 128 * 2**20
ACCELERATOR_BLOCK_BYTES = 512 * 2**20


class TokenScores(NamedTuple):
    """Log-probabilities (nats, at most 0) after each row's prefix.

    Attributes:
        label_logp: ``[R]``, log-probability of the label; 0 where the label is -100.
        boundary_logp: ``[R]``, log of the probability that the next token is in the boundary mask; NaN at rows
            where it was not asked for, so that no filler is taken for a probability. None without a mask.
    """

    label_logp: Tensor
    boundary_logp: Tensor | None


def token_scores(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    boundary_mask: Tensor | None = None,
    boundary_rows: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    vocab_size: int | None = None,
    chunk_rows: int | None = None,
) -> TokenScores:
    """Score ``labels`` under ``softmax(softcap * tanh(scale * (hidden @ weight.T + bias) / softcap))``.

    The logits exist for one block of rows at a time, in the forward pass and again in the backward pass, which
    recomputes them (alm.md §8.2.4). Rows that need neither score cost nothing. Arithmetic over the vocabulary is in
    float32, or in float64 for float64 hidden states. Differentiable once, in ``hidden``, ``weight`` and ``bias``.

    Args:
        hidden: ``[R, D]`` final hidden states (after the last norm), any floating dtype.
        weight: ``[V, D]`` output embeddings.
        labels: ``[R]`` int64 ids of the tokens that follow; -100 where there is none to score.
        boundary_mask: ``[V]`` or ``[vocab_size]`` bool, True for tokens that begin a new pre-token.
        boundary_rows: ``[R]`` bool, where the boundary log-probability is wanted, scored row or not; by default at
            every scored row.
        bias: ``[V]`` added to the logits.
        scale: factor of the logits before the soft cap.
        softcap: soft cap of the final logits, as in Gemma 2; None for no cap.
        vocab_size: number of real tokens; the weight rows from there on are padding and get no probability.
        chunk_rows: rows per block; by default as many as fit the block budgets at the top of this module.

    Returns:
        Scores in float32 (float64 for float64 hidden states).

    Raises:
        ValueError: the arguments do not fit together, or a label is no id of the vocabulary.
    """
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; it must be at least 1, or None for the default")
    vocab_size = weight.shape[0] if vocab_size is None else vocab_size
    _check_shapes(hidden, weight, labels, bias, softcap, vocab_size)
    if scale != 1.0:
        hidden, bias = hidden * scale, None if bias is None else bias * scale
    scored = labels != IGNORE_INDEX
    _check_labels(labels, scored, vocab_size)
    wants_boundary = _boundary_rows(boundary_mask, boundary_rows, scored)

    rows = (scored | wants_boundary).nonzero().squeeze(1)
    if chunk_rows is None:
        chunk_rows = _rows_per_block(vocab_size, logits_dtype(hidden.dtype), hidden.device)
    widths, order = _columns(boundary_mask, weight.shape[0], vocab_size)
    layout = HeadLayout(widths, order, softcap, chunk_rows)
    # The label of an unscored row is never used; 0 keeps the gather within the vocabulary.
    label_logp, boundary_logp = FusedHead.apply(
        hidden.index_select(0, rows), weight, bias, labels[rows].clamp(min=0), layout
    )
    scores = TokenScores(_place(label_logp, rows, scored, 0.0), None)
    if boundary_mask is None:
        return scores
    return scores._replace(boundary_logp=_place(boundary_logp, rows, wants_boundary, float("nan")))


def _place(values: Tensor, rows: Tensor, wanted: Tensor, filler: float) -> Tensor:
    """Put ``values`` at ``rows`` of a ``[R]`` tensor, then ``filler`` wherever no value is wanted."""
    placed = values.new_zeros(wanted.shape).index_copy(0, rows, values)
    return placed.masked_fill(~wanted, filler)


def _columns(boundary_mask: Tensor | None, num_rows: int, vocab_size: int) -> tuple[tuple[int, ...], Tensor | None]:
    """Widths of the parts of the logits and the weight row of each column: boundary tokens first.

    A contiguous boundary set lets both log-sum-exps come from one pass over the logits, each with its own maximum,
    so that a boundary mass far below float32's smallest number still has a logarithm.
    """
    if boundary_mask is None:
        return (vocab_size,), None
    if boundary_mask.shape not in ((num_rows,), (vocab_size,)):
        raise ValueError(
            f"boundary_mask has shape {tuple(boundary_mask.shape)}; expected one entry for each of the"
            f" {num_rows} weight rows or of the {vocab_size} tokens"
        )
    mask = boundary_mask[:vocab_size].to(torch.bool)
    order = torch.cat([mask.nonzero(), (~mask).nonzero()]).squeeze(1)
    num_boundary = int(mask.sum())
    if num_boundary == 0:
        raise ValueError("boundary_mask marks no token: the boundary log-probability would be -inf everywhere")
    if num_boundary == vocab_size:
        return (vocab_size,), order
    return (num_boundary, vocab_size - num_boundary), order


def _boundary_rows(boundary_mask: Tensor | None, boundary_rows: Tensor | None, scored: Tensor) -> Tensor:
    if boundary_rows is None:
        return scored if boundary_mask is not None else torch.zeros_like(scored)
    if boundary_mask is None:
        raise ValueError("boundary_rows was given without a boundary_mask")
    if boundary_rows.shape != scored.shape:
        raise ValueError(f"boundary_rows has shape {tuple(boundary_rows.shape)}; expected {tuple(scored.shape)}")
    return boundary_rows


def _rows_per_block(vocab_size: int, dtype: torch.dtype, device: torch.device) -> int:
    budget = CPU_BLOCK_BYTES if device.type == "cpu" else ACCELERATOR_BLOCK_BYTES
    return max(1, budget // (vocab_size * dtype.itemsize))


def _check_shapes(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, softcap: float | None, vocab_size: int
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be [R, D] and [V, D] with one D"
        )
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected [{hidden.shape[0]}], one a hidden row")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected [{weight.shape[0]}], one a weight row")
    if not 1 <= vocab_size <= weight.shape[0]:
        raise ValueError(f"vocab_size is {vocab_size}; the weight has {weight.shape[0]} rows")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap is {softcap}; it must be positive, or None for no cap")


def _check_labels(labels: Tensor, scored: Tensor, vocab_size: int) -> None:
    wrong = scored & ((labels < 0) | (labels >= vocab_size))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"label {int(labels[row])} at row {row} is no id of a vocabulary of {vocab_size} tokens: does the text's"
            f" tokenizer belong to this head? (rows without a label carry {IGNORE_INDEX})"
        )
