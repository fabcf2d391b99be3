"""Functions of whole next-token distributions, one row at a time, without a ``[R, V]`` tensor.

Such a function is a plain differentiable function of a block of logits. For a sum over rows (``rowwise_loss``) the
gradient is taken block by block during the forward pass, while the logits exist, so that the vocabulary is passed over
once: three matrix products a head, as in a dense loss, and no recomputation. What is kept is the gradient of the hidden
states and of the weight. For values of every row (``rowwise_values``), which may go anywhere, the backward pass
computes the logits again.

Legend: N rows, D width, V vocabulary, b rows of a block, M values a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses.head_arithmetic import accumulation_dtype, add_matmul_, cap_slope, matmul, row_blocks
from losses.output import ratio
from losses.predictions import LinearHead

# A loss holds several tensors of the size of a block at a time.
_TENSORS_PER_BLOCK = 8

RowLosses = Callable[[slice, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Mapping[str, Tensor]]]
"""(rows, logits [b, V] of every head, rows [b, ...] of every input) -> loss of each row [b], metrics as ``[2]``."""

RowValues = Callable[[slice, Sequence[Tensor]], Tensor]
"""(rows, logits [b, V] of every head) -> values [b, M]."""


class RowwiseLoss(NamedTuple):
    """The sum of the rows' losses, differentiable in heads and inputs; and summed metrics, ``[2]`` each."""

    total: Tensor
    metrics: dict[str, Tensor]


def rowwise_loss(
    losses_of: RowLosses,
    heads: Sequence[LinearHead],
    inputs: Sequence[Tensor] = (),
    *,
    block_rows: int | None = None,
) -> RowwiseLoss:
    """Add up ``losses_of`` over N rows, a block of rows at a time.

    Args:
        losses_of: pure and differentiable; it may read other tensors of N rows by the slice that it is given, without
            gradient. Each row's loss must depend on that row alone.
        heads: of N rows each; gradients reach ``hidden``, ``weight`` and ``bias`` wherever these require one.
        inputs: tensors [N, ...] with a gradient of their own, a number a row for instance.
        block_rows: rows of a block; by default as many as fit the budget of ``losses.head_arithmetic``.

    Returns:
        The total in float32 (float64 for float64 hidden states), 0 with a zero gradient for no rows.

    Raises:
        ValueError: heads and inputs differ in their number of rows, or ``losses_of`` does not give one loss a row.
    """
    if any(len(each) != len(heads[0]) for each in (*heads, *inputs)):
        raise ValueError(f"heads and inputs must have one number of rows, got {[len(e) for e in (*heads, *inputs)]}")
    tensors = [*_tensors_of(heads), *inputs]
    wanted = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in tensors]
    total, gradients, metrics = _accumulate(losses_of, heads, inputs, wanted, block_rows)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        if gradient is not None:
            total = total + _KnownGradient.apply(tensor, gradient, total.dtype)
    return RowwiseLoss(total, metrics)


def rowwise_values(values_of: RowValues, heads: Sequence[LinearHead], *, block_rows: int | None = None) -> Tensor:
    """Evaluate ``values_of`` at N rows, a block of rows at a time.

    The backward pass computes the logits again: where the sum over the rows is all that is wanted, ``rowwise_loss``
    is a third cheaper.

    Args:
        values_of: pure and differentiable; each row's values must depend on that row alone.
        heads: of N rows each; gradients reach ``hidden``, ``weight`` and ``bias`` wherever these require one.
        block_rows: rows of a block; by default as many as fit the budget of ``losses.head_arithmetic``.

    Returns:
        [N, M], in the dtype that ``values_of`` gives.

    Raises:
        ValueError: the heads differ in their number of rows.
    """
    if any(len(head) != len(heads[0]) for head in heads):
        raise ValueError(f"heads must have one number of rows, got {[len(head) for head in heads]}")
    return _RowwiseValues.apply(values_of, tuple(heads), block_rows, *_tensors_of(heads))


class _KnownGradient(torch.autograd.Function):
    """Zero, with a gradient with respect to one tensor that is known beforehand.

    One node a tensor: asking for the gradient of the hidden states alone does not touch that of the weight.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(gradient)
        return gradient.new_zeros((), dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total.to(gradient.dtype), None, None


class _RowwiseValues(torch.autograd.Function):
    """Inputs: the function, the heads and the block size; hidden, weight and bias of every head."""

    @staticmethod
    def forward(
        ctx: Any,
        values_of: RowValues,
        heads: tuple[LinearHead, ...],
        block_rows: int | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.values_of, ctx.heads, ctx.block_rows = values_of, heads, block_rows
        # A block of no rows tells how many values there are where there is no row at all.
        blocks = list(_blocks(heads, block_rows)) or [slice(0, 0)]
        return torch.cat([values_of(rows, [head.logits(rows) for head in heads]) for rows in blocks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor | None, ...]:
        def weighted(
            rows: slice, logits: Sequence[Tensor], inputs: Sequence[Tensor]
        ) -> tuple[Tensor, Mapping[str, Tensor]]:
            return (ctx.values_of(rows, logits) * grad_values[rows]).sum(1), {}

        _, gradients, _ = _accumulate(weighted, ctx.heads, (), ctx.needs_input_grad[3:], ctx.block_rows)
        return None, None, None, *gradients


def _tensors_of(heads: Sequence[LinearHead]) -> list[Tensor | None]:
    return [tensor for head in heads for tensor in (head.hidden, head.weight, head.bias)]


def _accumulate(
    losses_of: RowLosses,
    heads: Sequence[LinearHead],
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    block_rows: int | None,
) -> tuple[Tensor, list[Tensor | None], dict[str, Tensor]]:
    """Sum of all losses, its gradient in each of the heads' tensors and inputs as far as ``wanted``, and metrics."""
    tensors = [*_tensors_of(heads), *inputs]
    gradients = [
        torch.zeros_like(tensor, dtype=accumulation_dtype(tensor.dtype)) if wants else None
        for tensor, wants in zip(tensors, wanted, strict=True)
    ]
    by_head = [gradients[3 * i : 3 * i + 3] for i in range(len(heads))]
    by_input = [[gradient] for gradient in gradients[3 * len(heads) :]]
    total = heads[0].hidden.new_zeros((), dtype=heads[0].dtype)
    metrics: dict[str, Tensor] = {}
    for rows in _blocks(heads, block_rows):
        # Heads without any gradient are computed all the same: the loss reads their logits.
        leaves = [
            leaf.requires_grad_(any(gradient is not None for gradient in own))
            for leaf, own in zip(
                [*(head.logits(rows) for head in heads), *(x.detach()[rows] for x in inputs)],
                [*by_head, *by_input],
                strict=True,
            )
        ]
        with torch.set_grad_enabled(any(wanted)):
            losses, found_metrics = losses_of(rows, leaves[: len(heads)], leaves[len(heads) :])
            _check_losses(losses, leaves[0])
            block_total = losses.sum()
        total += block_total.detach()
        for name, pair in found_metrics.items():
            metrics[name] = metrics[name] + ratio(*pair) if name in metrics else ratio(*pair)
        found = _gradients(block_total, leaves)
        for head, own, leaf, grad_logits in zip(heads, by_head, leaves, found, strict=False):
            if grad_logits is not None:
                _add_head_gradients(own, head, rows, grad_logits, leaf.detach())
        for (gradient,), grad_input in zip(by_input, found[len(heads) :], strict=True):
            if grad_input is not None:
                gradient[rows] = grad_input
    gradients = [
        None if gradient is None else gradient.to(tensor.dtype)
        for gradient, tensor in zip(gradients, tensors, strict=True)
    ]
    return total, gradients, metrics


def _check_losses(losses: Tensor, logits: Tensor) -> None:
    if losses.shape != logits.shape[:1]:
        raise ValueError(f"the losses of a block have shape {tuple(losses.shape)}; expected [{len(logits)}], one a row")


def _gradients(total: Tensor, leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of ``total`` in those ``leaves`` that want one and that it depends on."""
    active = [leaf for leaf in leaves if leaf.requires_grad]
    if not active or not total.requires_grad:
        return [None] * len(leaves)
    found = iter(torch.autograd.grad(total, active, allow_unused=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def _add_head_gradients(
    gradients: Sequence[Tensor | None], head: LinearHead, rows: slice, grad_logits: Tensor, logits: Tensor
) -> None:
    """Add one block's gradients of hidden, weight and bias, given that of the logits."""
    grad_hidden, grad_weight, grad_bias = gradients
    if head.softcap is not None:
        grad_logits = grad_logits * cap_slope(logits, head.softcap)
    if head.scale != 1.0:
        grad_logits = grad_logits * head.scale
    hidden, weight = head.operands(rows)
    operand = grad_logits.to(hidden.dtype)
    if grad_hidden is not None:
        grad_hidden[rows] = matmul(operand, weight)
    if grad_weight is not None:
        add_matmul_(grad_weight[: head.vocab_size], operand.t(), hidden)
    if grad_bias is not None:
        grad_bias[: head.vocab_size] += grad_logits.sum(0)


def _blocks(heads: Sequence[LinearHead], block_rows: int | None) -> Iterator[slice]:
    num_rows = len(heads[0])
    if block_rows is not None:
        return (slice(start, start + block_rows) for start in range(0, max(num_rows, 1), block_rows))
    logits_bytes = sum(head.vocab_size for head in heads) * heads[0].dtype.itemsize
    return row_blocks(num_rows, _TENSORS_PER_BLOCK * logits_bytes, heads[0].hidden.device)
