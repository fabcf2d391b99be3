"""Losses of whole next-token distributions, one row at a time, without a ``[R, V]`` tensor.

Such a loss is a plain differentiable function of a block of logits. Its gradient is taken block by block during the
forward pass, while the logits exist, so that the vocabulary is passed over once: three matrix products a head, as in a
dense loss, and no recomputation. What is kept is the gradient of the hidden states and of the weight.

Legend: N rows, D width, V vocabulary, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses.output import ratio
from losses.predictions import LinearHead

# A loss holds several tensors of the size of a block at a time; together they should fit the budget.
_TENSORS_PER_BLOCK = 8
_CPU_BUDGET_BYTES = 256 * 2**20
_ACCELERATOR_BUDGET_BYTES = 2 * 2**30

RowLosses = Callable[[slice, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Mapping[str, Tensor]]]
"""(rows, logits [b, V] of every head, rows [b, ...] of every input) -> loss of each row [b], metrics as ``[2]``."""


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
        block_rows: rows of a block; by default as many as fit the memory budget at the top of this module.

    Returns:
        The total in float32 (float64 for float64 hidden states), 0 with a zero gradient for no rows.

    Raises:
        ValueError: heads and inputs differ in their number of rows.
    """
    num_rows = len(heads[0])
    if any(len(each) != num_rows for each in (*heads, *inputs)):
        raise ValueError(f"heads and inputs must have one number of rows, got {[len(e) for e in (*heads, *inputs)]}")
    if block_rows is None:
        block_rows = _rows_per_block(heads)
    plan = _Plan(losses_of, tuple(heads), block_rows, torch.is_grad_enabled(), {})
    tensors = [tensor for head in heads for tensor in (head.hidden, head.weight, head.bias)]
    total = _Rowwise.apply(plan, *tensors, *inputs)
    return RowwiseLoss(total, plan.metrics)


class _Plan(NamedTuple):
    losses_of: RowLosses
    heads: tuple[LinearHead, ...]
    block_rows: int
    wants_gradient: bool
    metrics: dict[str, Tensor]

    def add_metrics(self, metrics: Mapping[str, Tensor]) -> None:
        for name, pair in metrics.items():
            pair = ratio(*pair)
            self.metrics[name] = self.metrics[name] + pair if name in self.metrics else pair


class _Rowwise(torch.autograd.Function):
    """Inputs: the plan; hidden, weight and bias of every head; the row inputs."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor | None) -> Tensor:
        num_heads = len(plan.heads)
        inputs = tensors[3 * num_heads :]
        wanted = [wants and plan.wants_gradient for wants in ctx.needs_input_grad[1:]]
        dtype = plan.heads[0].dtype
        gradients = [
            None if not wants else torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
            for wants, tensor in zip(wanted, tensors, strict=True)
        ]
        total = plan.heads[0].hidden.new_zeros((), dtype=dtype)
        for start in range(0, len(plan.heads[0]), plan.block_rows):
            rows = slice(start, start + plan.block_rows)
            # Slots of heads without any gradient are computed all the same: the loss reads their logits.
            logits = [head.logits(rows) for head in plan.heads]
            leaves = [
                *(z.requires_grad_(any(wanted[3 * i : 3 * i + 3])) for i, z in enumerate(logits)),
                *(x[rows].detach().requires_grad_(w) for x, w in zip(inputs, wanted[3 * num_heads :], strict=True)),
            ]
            with torch.set_grad_enabled(any(wanted)):
                losses, metrics = plan.losses_of(rows, leaves[:num_heads], leaves[num_heads:])
                block_total = losses.sum()
            total += block_total.detach()
            plan.add_metrics(metrics)
            active = [leaf for leaf in leaves if leaf.requires_grad]
            if active and block_total.requires_grad:
                found = iter(torch.autograd.grad(block_total, active, allow_unused=True))
                by_leaf = [next(found) if leaf.requires_grad else None for leaf in leaves]
                for i, head in enumerate(plan.heads):
                    if by_leaf[i] is not None:
                        _add_head_gradients(gradients[3 * i : 3 * i + 3], head, rows, by_leaf[i], logits[i].detach())
                for gradient, found_gradient in zip(gradients[3 * num_heads :], by_leaf[num_heads:], strict=True):
                    if found_gradient is not None:
                        gradient[rows] = found_gradient
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if gradient is None else (gradient * grad_total).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (None, *scaled)


def _add_head_gradients(
    gradients: Sequence[Tensor | None], head: LinearHead, rows: slice, grad_logits: Tensor, logits: Tensor
) -> None:
    """Add one block's gradients of hidden, weight and bias, given that of the logits."""
    grad_hidden, grad_weight, grad_bias = gradients
    if head.softcap is not None:
        grad_logits = grad_logits * (1 - (logits / head.softcap).square())
    if head.scale != 1.0:
        grad_logits = grad_logits * head.scale
    real = slice(head.vocab_size)
    if grad_hidden is not None:
        grad_hidden[rows] = grad_logits @ head.weight[real].detach().to(grad_logits.dtype)
    if grad_weight is not None:
        grad_weight[real].addmm_(grad_logits.t(), head.hidden[rows].detach().to(grad_logits.dtype))
    if grad_bias is not None:
        grad_bias[real] += grad_logits.sum(0)


def _rows_per_block(heads: Sequence[LinearHead]) -> int:
    budget = _CPU_BUDGET_BYTES if heads[0].hidden.device.type == "cpu" else _ACCELERATOR_BUDGET_BYTES
    row_bytes = sum(head.vocab_size for head in heads) * heads[0].dtype.itemsize
    return max(1, budget // (_TENSORS_PER_BLOCK * row_bytes))
