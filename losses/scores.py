"""The fused head: label and boundary log-probabilities of every token, without a ``[R, V]`` tensor.

Legend: R rows (token positions), D width of the hidden states, V rows of the head's weight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losses.fused_head import HeadLayout, differentiable_scores
from losses.predictions import LinearHead

IGNORE_INDEX = -100

# What one tile of logits may occupy, and how many rows it has. On the CPU a tile should stay in the caches; on an
# accelerator it should keep the whole device busy.
CPU_TILE_BYTES, CPU_TILE_ROWS = 16 * 2**20, 1024
ACCELERATOR_TILE_BYTES, ACCELERATOR_TILE_ROWS = 512 * 2**20, 8192
# Rows of a tile that start off a cache line make the CPU's matrix product a third slower.
TILE_ALIGNMENT = 64


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
    chunk_columns: int | None = None,
) -> TokenScores:
    """Score ``labels`` under ``softmax(softcap * tanh(scale * (hidden @ weight.T + bias) / softcap))``.

    The logits exist for one tile of rows and tokens at a time, in the forward pass and again in the backward pass if
    weight or bias want a gradient (alm.md §8.2.4). The gradient with respect to ``hidden`` costs no pass over the
    vocabulary: asking for it once for each of several losses is cheap. Rows that need neither score cost nothing.
    Arithmetic over the vocabulary is in float32, or in float64 for float64 hidden states. Differentiable once, in
    ``hidden``, ``weight`` and ``bias``. A hidden state that is not finite gives scores that are not finite.

    Args:
        hidden: ``[R, D]`` final hidden states (after the last norm), any floating dtype.
        weight: ``[V, D]`` output embeddings, a parameter or an expression (the base plus a low-rank product).
        labels: ``[R]`` int64 ids of the tokens that follow; -100 where there is none to score.
        boundary_mask: ``[V]`` or ``[vocab_size]`` bool, True for tokens that begin a new pre-token.
        boundary_rows: ``[R]`` bool, where the boundary log-probability is wanted, scored row or not; by default at
            every scored row.
        bias: ``[V]`` added to the products.
        softcap: soft cap of the final logits, as in Gemma 2; None for no cap.
        scale: factor of the logits before the soft cap, as in Cohere's models.
        vocab_size: number of real tokens; the weight rows from there on are padding and get no probability.
        chunk_rows, chunk_columns: size of a tile; by default as the budgets at the top of this module allow.

    Returns:
        Scores in float32 (float64 for float64 hidden states).

    Raises:
        ValueError: the arguments do not fit together, or a label is no id of the vocabulary.
    """
    vocab_size = LinearHead(hidden, weight, bias, softcap, scale, vocab_size).vocab_size
    _check_tile(chunk_rows, chunk_columns)
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected [{hidden.shape[0]}], one a hidden row")
    scored = labels != IGNORE_INDEX
    _check_labels(labels, scored, vocab_size)
    wants_boundary = _boundary_rows(boundary_mask, boundary_rows, scored)
    widths, order = _columns(boundary_mask, weight.shape[0], vocab_size)

    rows = (scored | wants_boundary).nonzero().squeeze(1)
    layout = HeadLayout(widths, order, scale, softcap, *_tile(hidden, len(rows), chunk_rows, chunk_columns))
    # The label of an unscored row is never used; 0 is a token of every vocabulary.
    scores = differentiable_scores(hidden.index_select(0, rows), weight, bias, labels[rows].clamp(min=0), layout)
    label_logp = _place(scores[0], rows, scored, 0.0)
    if boundary_mask is None:
        return TokenScores(label_logp, None)
    # Where every token begins a pre-token, that one follows is certain.
    boundary_logp = scores[1] if len(widths) == 2 else torch.zeros_like(scores[0])
    return TokenScores(label_logp, _place(boundary_logp, rows, wants_boundary, float("nan")))


def _place(values: Tensor, rows: Tensor, wanted: Tensor, filler: float) -> Tensor:
    """Put ``values`` at ``rows`` of a ``[R]`` tensor, then ``filler`` wherever no value is wanted."""
    placed = values.new_zeros(wanted.shape).index_copy(0, rows, values)
    return placed.masked_fill(~wanted, filler)


def _columns(boundary_mask: Tensor | None, num_rows: int, vocab_size: int) -> tuple[tuple[int, ...], Tensor | None]:
    """Widths of the parts of the logits and the weight row of each column: boundary tokens first.

    Parts with a log-sum-exp and a maximum each, so that a boundary mass far below float32's smallest number still has
    a logarithm, and no token is in both, so that two parts cost no more than one.
    """
    if boundary_mask is None:
        return (vocab_size,), None
    if boundary_mask.shape not in ((num_rows,), (vocab_size,)):
        raise ValueError(
            f"boundary_mask has shape {tuple(boundary_mask.shape)}; expected one entry for each of the"
            f" {num_rows} weight rows or of the {vocab_size} tokens"
        )
    mask = boundary_mask[:vocab_size].to(torch.bool)
    boundary, others = mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)
    if len(boundary) == 0:
        raise ValueError("boundary_mask marks no token: the boundary log-probability would be -inf everywhere")
    if len(others) == 0:
        return (vocab_size,), None
    return (len(boundary), len(others)), torch.cat([boundary, others])


def _boundary_rows(boundary_mask: Tensor | None, boundary_rows: Tensor | None, scored: Tensor) -> Tensor:
    if boundary_rows is None:
        return scored if boundary_mask is not None else torch.zeros_like(scored)
    if boundary_mask is None:
        raise ValueError("boundary_rows was given without a boundary_mask")
    if boundary_rows.shape != scored.shape:
        raise ValueError(f"boundary_rows has shape {tuple(boundary_rows.shape)}; expected {tuple(scored.shape)}")
    return boundary_rows


def _tile(hidden: Tensor, num_rows: int, chunk_rows: int | None, chunk_columns: int | None) -> tuple[int, int]:
    """Rows and columns of a tile; few rows leave room for more columns."""
    on_cpu = hidden.device.type == "cpu"
    budget, most = (CPU_TILE_BYTES, CPU_TILE_ROWS) if on_cpu else (ACCELERATOR_TILE_BYTES, ACCELERATOR_TILE_ROWS)
    chunk_rows = chunk_rows or max(1, min(num_rows, most))
    return chunk_rows, chunk_columns or max(1, budget // (4 * chunk_rows * TILE_ALIGNMENT)) * TILE_ALIGNMENT


def _check_tile(chunk_rows: int | None, chunk_columns: int | None) -> None:
    for name, size in (("chunk_rows", chunk_rows), ("chunk_columns", chunk_columns)):
        if size is not None and size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1, or None for the default")


def _check_labels(labels: Tensor, scored: Tensor, vocab_size: int) -> None:
    wrong = scored & ((labels < 0) | (labels >= vocab_size))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"label {int(labels[row])} at row {row} is no id of a vocabulary of {vocab_size} tokens: does the text's"
            f" tokenizer belong to this head? (rows without a label carry {IGNORE_INDEX})"
        )
