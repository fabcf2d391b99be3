"""The arithmetic under ``token_scores``: one pass over the logits in tiles, and the gradients of what it gives.

The scores of a row are those of an attention over the vocabulary: hidden states are the queries, the rows of the head's
weight are keys and values. So the forward pass works like memory-efficient attention: tile by tile with a running
maximum, and, where the hidden states need a gradient, with the running softmax-weighted mean of the weight's rows. That
mean is all that the gradient with respect to the hidden states needs, however often it is asked for. The gradient with
respect to the weight takes a second pass, in a node of its own, which runs only if that gradient is wanted.

Legend: N rows, D width, V real vocabulary entries (padding rows of the weight never enter the arithmetic), S scores,
P parts of the vocabulary: the boundary tokens and all others, or one part if there is no boundary mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses.head_arithmetic import (
    accumulation_dtype,
    add_matmul_,
    cap_slope,
    finish_logits,
    matmul,
    operand_dtype,
)
from losses.head_layout import HeadLayout

COMPILE_ON_ACCELERATORS = True
"""Fuse the elementwise arithmetic of a tile with torch.compile on accelerators, where it is bound by memory traffic."""


def differentiable_scores(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, layout: HeadLayout
) -> Tensor:
    """Log-probabilities of the labels and, if there are two parts, the log-mass of the first one.

    Saves the inputs, one log-sum-exp a row and part, and one vector of width D a row and score.

    Args:
        hidden: [N, D]; weight: [V or more, D]; bias: [V or more] or None; labels: int64 [N], each an id below V.

    Returns:
        [S, N] in the accumulation dtype, at most 0.
    """
    wants_gradient = torch.is_grad_enabled()
    columns = layout.column_of(labels)
    with torch.no_grad():
        scores, part_lse, directions = _measure(
            hidden, weight, bias, labels, columns, layout, wants_gradient and hidden.requires_grad
        )
    if directions is not None:
        scores = scores + _HiddenGradient.apply(hidden, directions)
    if wants_gradient and (weight.requires_grad or (bias is not None and bias.requires_grad)):
        scores = scores + _WeightGradient.apply(weight, bias, hidden.detach(), columns, part_lse, layout)
    return scores


class _HiddenGradient(torch.autograd.Function):
    """Zeros [S, N] with the gradient ``directions`` [S, N, D] with respect to the hidden states [N, D]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, directions: Tensor) -> Tensor:
        ctx.save_for_backward(directions)
        ctx.dtype = hidden.dtype
        return directions.new_zeros(directions.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        (directions,) = ctx.saved_tensors
        return torch.einsum("sn,snd->nd", grad_scores, directions).to(ctx.dtype), None


class _WeightGradient(torch.autograd.Function):
    """Zeros [S, N] with the scores' gradients with respect to weight and bias; passes over the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        hidden: Tensor,
        columns: Tensor,
        part_lse: Tensor,
        layout: HeadLayout,
    ) -> Tensor:
        ctx.save_for_backward(weight, bias, hidden, columns, part_lse)
        ctx.layout = layout
        return part_lse.new_zeros(part_lse.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, hidden, columns, part_lse = ctx.saved_tensors
        layout: HeadLayout = ctx.layout
        wants_weight, wants_bias = ctx.needs_input_grad[:2]
        # With p the softmax over all columns and p_0 the one over the first part, the gradient of the logits is
        # grad_label * onehot + grad_part * p_0 - (grad_label + grad_part) * p, and on part i
        # p = p_i * exp(lse_i - lse): each part is its own softmax times one factor a row.
        factors = -grad_scores.sum(0) * (part_lse - part_lse.logsumexp(0)).exp()
        if len(grad_scores) == 2:
            factors[0] += grad_scores[1]

        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        gradient_of = _arithmetic(_logit_gradient, hidden)
        operand = hidden.to(operand_dtype(hidden))
        for tile in layout.tiles():
            at = layout.weight_rows(tile)
            tile_weight, tile_bias = _take(weight, bias, at, operand)
            tile_grad = part_lse.new_zeros(tile_weight.shape)
            tile_grad_bias = part_lse.new_zeros(len(tile_weight))
            for rows in layout.blocks(len(hidden)):
                products = matmul(operand[rows], tile_weight.t())
                grad_logits = gradient_of(
                    products,
                    tile_bias,
                    part_lse[tile.part, rows],
                    factors[tile.part, rows],
                    columns[rows] - tile.start,
                    grad_scores[0, rows],
                    layout.scale,
                    layout.softcap,
                )
                if grad_bias is not None:
                    tile_grad_bias += grad_logits.sum(0)
                if grad_weight is not None:
                    add_matmul_(tile_grad, grad_logits.to(operand.dtype).t(), operand[rows])
            if grad_weight is not None:
                grad_weight[at] = tile_grad.to(weight.dtype)
            if grad_bias is not None:
                grad_bias[at] = tile_grad_bias.to(bias.dtype)
        return grad_weight, grad_bias, None, None, None, None


def _measure(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    columns: Tensor,
    layout: HeadLayout,
    wants_directions: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores [S, N], log-sum-exp of every part [P, N], and the scores' gradients in the hidden states [S, N, D]."""
    parts, dtype = len(layout.widths), accumulation_dtype(hidden.dtype)
    peak = hidden.new_full((parts, len(hidden)), -torch.inf, dtype=dtype)
    total = torch.zeros_like(peak)
    mean = hidden.new_zeros((parts, *hidden.shape), dtype=dtype) if wants_directions else None
    label_logits = torch.zeros_like(peak[0])
    softmax_of = _arithmetic(_partial_softmax, hidden)
    operand = hidden.to(operand_dtype(hidden))
    for tile in layout.tiles():
        part = tile.part
        tile_weight, tile_bias = _take(weight, bias, layout.weight_rows(tile), operand)
        for rows in layout.blocks(len(hidden)):
            products = matmul(operand[rows], tile_weight.t())
            found = softmax_of(
                products, tile_bias, peak[part, rows], columns[rows] - tile.start, layout.scale, layout.softcap
            )
            decay = (peak[part, rows] - found.peak).exp()
            peak[part, rows] = found.peak
            total[part, rows] = total[part, rows] * decay + found.total
            label_logits[rows] += found.label_logits
            if mean is not None:
                add_matmul_(mean[part, rows].mul_(decay[:, None]), found.weights.to(operand.dtype), tile_weight)

    part_lse = total.log() + peak
    lse = part_lse.logsumexp(0)
    # None is above 0, even rounded: each log-sum-exp is its maximum plus something not negative.
    scores = torch.stack([label_logits, *part_lse[: parts - 1]]) - lse
    if mean is None:
        return scores, part_lse, None
    mean /= total[:, :, None]
    share = (part_lse - lse).exp()[:, :, None]
    label_rows = weight.index_select(0, labels).to(dtype)
    if layout.softcap is not None:
        label_rows *= cap_slope(label_logits, layout.softcap)[:, None]
    directions = torch.stack([label_rows - (share * mean).sum(0), *(share[1:] * (mean[:1] - mean[1:]))])
    return scores, part_lse, directions.mul_(layout.scale)


class _PartialSoftmax(NamedTuple):
    """What a tile adds to the softmax of b rows: all relative to ``peak``, the new running maximum."""

    peak: Tensor
    total: Tensor
    weights: Tensor
    label_logits: Tensor


def _partial_softmax(
    products: Tensor,
    bias: Tensor | None,
    peak: Tensor,
    label_columns: Tensor,
    scale: float,
    softcap: float | None,
) -> _PartialSoftmax:
    """Exponentials of a tile's logits [b, c], their sum, and the logits of the labels that lie in the tile (0 if not).

    ``weights`` are the exponentials times the slope of the soft cap.
    """
    logits = finish_logits(products, bias, scale, softcap)
    inside = (label_columns >= 0) & (label_columns < logits.shape[1])
    label_logits = logits.gather(1, label_columns.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    peak = torch.maximum(peak, logits.amax(1))
    weights = (logits - peak[:, None]).exp_()
    total = weights.sum(1)
    if softcap is not None:
        weights *= cap_slope(logits, softcap)
    return _PartialSoftmax(peak, total, weights, label_logits.where(inside, 0))


def _logit_gradient(
    products: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    factor: Tensor,
    label_columns: Tensor,
    grad_label: Tensor,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Gradient of a tile's products [b, c]: ``factor`` times the part's softmax, plus ``grad_label`` at the labels."""
    logits = finish_logits(products, bias, scale, softcap)
    gradient = (logits - lse[:, None]).exp_().mul_(factor[:, None])
    inside = (label_columns >= 0) & (label_columns < logits.shape[1])
    gradient.scatter_add_(1, label_columns.clamp(0, logits.shape[1] - 1)[:, None], grad_label.where(inside, 0)[:, None])
    if softcap is not None:
        gradient *= cap_slope(logits, softcap)
    return gradient if scale == 1.0 else gradient.mul_(scale)


def _take(weight: Tensor, bias: Tensor | None, at: Tensor | slice, operand: Tensor) -> tuple[Tensor, Tensor | None]:
    """A tile's weight rows in the operands' dtype, and its bias in the accumulation dtype."""
    tile_bias = None if bias is None else bias.detach()[at].to(accumulation_dtype(operand.dtype))
    return weight.detach()[at].to(operand.dtype), tile_bias


def _arithmetic(function: Callable, hidden: Tensor) -> Callable:
    """``function``, compiled on accelerators."""
    return _compiled(function) if COMPILE_ON_ACCELERATORS and hidden.is_cuda else function


@functools.cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=True, fullgraph=True)
