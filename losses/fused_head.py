"""The autograd function under ``token_scores``: logits by blocks of rows, recomputed in the backward pass.

Legend: N rows, D width, V real vocabulary entries (padding rows of the weight never enter the arithmetic), P parts:
the logits' columns are the boundary tokens first and then all others, or one part if there is no boundary mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HAS_MIXED_MATMUL = "dtype_out" in torch.ops.aten.mm.overloads()  # PyTorch 2.8, on accelerators


@dataclass(frozen=True)
class HeadLayout:
    """How the head's logits are laid out and computed.

    Attributes:
        widths: number of columns of each part; they add up to V.
        order: ``[V]`` int64, the weight row of each column; None if column i is row i.
        softcap: soft cap of the logits, or None.
        chunk_rows: rows per block.
    """

    widths: tuple[int, ...]
    order: Tensor | None
    softcap: float | None
    chunk_rows: int

    def column_of(self, labels: Tensor) -> Tensor:
        """Column of each token id in ``labels``."""
        if self.order is None:
            return labels
        column = torch.empty_like(self.order)
        column[self.order] = torch.arange(len(self.order), device=self.order.device)
        return column[labels]


class Operands(NamedTuple):
    """What is multiplied: hidden ``[N, D]`` and weight ``[V, D]`` in one dtype, bias ``[V]`` in the logits' dtype."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


class FusedHead(torch.autograd.Function):
    """Label log-probability ``[N]`` and boundary log-probability ``[N]`` (None without an order) of a linear head.

    Saves its inputs and one log-sum-exp a row and part, never a tensor of N times V elements.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, layout: HeadLayout
    ) -> tuple[Tensor, Tensor | None]:
        columns = layout.column_of(labels)
        dtype = logits_dtype(hidden.dtype)
        label_logits = hidden.new_empty(len(hidden), dtype=dtype)
        part_lse = hidden.new_empty((len(layout.widths), len(hidden)), dtype=dtype)
        for rows, logits in _logit_blocks(_operands(hidden, weight, bias, layout), layout, dtype):
            label_logits[rows] = logits.gather(1, columns[rows, None]).squeeze(1)
            for part, lse in zip(logits.split(layout.widths, dim=1), part_lse, strict=True):
                lse[rows] = _log_sum_exp_(part)
        ctx.save_for_backward(hidden, weight, bias, columns, part_lse)
        ctx.layout = layout
        lse = part_lse.logsumexp(0)
        # Neither is above 0, even rounded: each log-sum-exp is its maximum plus something not negative.
        return label_logits - lse, None if layout.order is None else part_lse[0] - lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_label: Tensor, grad_boundary: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, columns, part_lse = ctx.saved_tensors
        layout, dtype = ctx.layout, part_lse.dtype
        # With p the softmax over all columns and p_0 the one over the boundary part, the gradient of the logits is
        # grad_label * onehot + grad_boundary * p_0 - (grad_label + grad_boundary) * p, and on part i
        # p = p_i * exp(lse_i - lse): each part is its own softmax times one factor a row.
        grad_lse = grad_label if grad_boundary is None else grad_label + grad_boundary
        factor = -grad_lse * (part_lse - part_lse.logsumexp(0)).exp()
        if grad_boundary is not None:
            factor[0] += grad_boundary

        operands = _operands(hidden, weight, bias, layout)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = hidden.new_empty(hidden.shape, dtype=dtype) if wants_hidden else None
        grad_weight = weight.new_zeros(operands.weight.shape, dtype=dtype) if wants_weight else None
        grad_bias = weight.new_zeros(len(operands.weight), dtype=dtype) if wants_bias else None
        for rows, logits in _logit_blocks(operands, layout, dtype):
            cap_slope = None if layout.softcap is None else 1 - (logits / layout.softcap).square_()
            for part, lse, scale in zip(logits.split(layout.widths, dim=1), part_lse, factor, strict=True):
                part.sub_(lse[rows, None]).exp_().mul_(scale[rows, None])
            logits.scatter_add_(1, columns[rows, None], grad_label[rows, None])
            if cap_slope is not None:
                logits.mul_(cap_slope)
            if grad_bias is not None:
                grad_bias += logits.sum(0)
            grad_logits = logits.to(operands.weight.dtype)
            if grad_hidden is not None:
                _matmul(grad_logits, operands.weight, out=grad_hidden[rows])
            if grad_weight is not None:
                _add_matmul(grad_weight, grad_logits.t(), operands.hidden[rows])
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else _to_rows(grad_weight, layout.order, like=weight),
            None if grad_bias is None else _to_rows(grad_bias, layout.order, like=bias),
            None,
            None,
        )


def logits_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of all arithmetic over the vocabulary: float32, or float64 for float64 hidden states."""
    return torch.promote_types(dtype, torch.float32)


def _operand_dtype(hidden: Tensor) -> torch.dtype:
    """Dtype of both operands of the matmuls.

    Half-precision operands stay as they are only where their product can be had in float32; the CPU's matmul would
    round it to half precision, so there they are cast up first.
    """
    if HAS_MIXED_MATMUL and hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        return hidden.dtype
    return logits_dtype(hidden.dtype)


def _operands(hidden: Tensor, weight: Tensor, bias: Tensor | None, layout: HeadLayout) -> Operands:
    """Bring the operands into the order of the columns and into the dtype of the matmul."""
    dtype = _operand_dtype(hidden)

    def in_columns(rows: Tensor) -> Tensor:
        return rows[: sum(layout.widths)] if layout.order is None else rows.index_select(0, layout.order)

    return Operands(
        hidden.to(dtype),
        in_columns(weight).to(dtype),
        None if bias is None else in_columns(bias).to(logits_dtype(hidden.dtype)),
    )


def _logit_blocks(operands: Operands, layout: HeadLayout, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield ``(rows, logits [rows, V])`` block by block, all in one buffer: use a block before asking for the next.

    One buffer, because fresh pages of this size cost the CPU as much as a pass over them.
    """
    hidden, weight, bias = operands
    buffer = hidden.new_empty((min(layout.chunk_rows, len(hidden)), len(weight)), dtype=dtype)
    for start in range(0, len(hidden), layout.chunk_rows):
        rows = slice(start, min(start + layout.chunk_rows, len(hidden)))
        logits = _matmul(hidden[rows], weight.t(), out=buffer[: rows.stop - rows.start])
        if bias is not None:
            logits.add_(bias)
        if layout.softcap is not None:
            logits.div_(layout.softcap).tanh_().mul_(layout.softcap)
        yield rows, logits


def _log_sum_exp_(logits: Tensor) -> Tensor:
    """Log-sum-exp of each row; overwrites ``logits``, which saves a second tensor of that size."""
    peak = logits.amax(1, keepdim=True)
    return logits.sub_(peak).exp_().sum(1).log_().add_(peak.squeeze(1))


def _matmul(left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    return torch.mm(left, right, out_dtype=out.dtype, out=out)


def _add_matmul(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left, right, out_dtype=total.dtype))


def _to_rows(gradient: Tensor, order: Tensor | None, *, like: Tensor) -> Tensor:
    """Bring a gradient by columns back to the weight's rows and dtype; padding rows get zero."""
    if order is None and len(gradient) == len(like):
        return gradient.to(like.dtype)
    by_row = torch.zeros_like(like)
    by_row[slice(len(gradient)) if order is None else order] = gradient.to(like.dtype)
    return by_row
