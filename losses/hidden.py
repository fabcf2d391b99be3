"""Hidden-state matching at chunk ends (the ALM paper's auxiliary loss, alm.md §1.8).

Legend: N chunk ends, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from losses.output import LossOutput

EPSILON = 1e-8


def channel_energy(teacher_hidden: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of squares of each channel ``[D]`` (float32, or float64 for float64 inputs) and number of valid rows.

    Add both up over all micro-batches and ranks of a step and divide: the ``scale`` of ``hidden_state_loss``.

    Args:
        teacher_hidden: ``[N, D]`` hidden states.
        valid: ``[N]`` bool, rows that count.
    """
    squares = _at_least_float32(teacher_hidden.detach()).square()
    return squares.masked_fill(~valid[:, None], 0).sum(0), valid.sum()


def hidden_state_loss(teacher_hidden: Tensor, student_hidden: Tensor, valid: Tensor, *, scale: Tensor) -> LossOutput:
    """Squared error relative to the teacher's energy in each channel, averaged over channels.

    The units are chunk ends. The scale comes from outside so that it can be that of the whole global batch: a
    normaliser computed here would depend on how the batch was split. Differentiable in ``student_hidden`` only.

    Args:
        teacher_hidden, student_hidden: ``[N, D]`` hidden states at the same chunk ends, any floating dtype.
        valid: ``[N]`` bool, rows that count; the others may hold anything.
        scale: ``[D]`` mean square of each teacher channel over the global batch (``channel_energy``).

    Raises:
        ValueError: the shapes differ; a student of another width needs a projection first.
    """
    if teacher_hidden.shape != student_hidden.shape or scale.shape != teacher_hidden.shape[1:]:
        raise ValueError(
            f"teacher_hidden {tuple(teacher_hidden.shape)} and student_hidden {tuple(student_hidden.shape)} must have"
            f" one shape [N, D], and scale {tuple(scale.shape)} must be [D]; project the student if widths differ"
        )
    difference = _at_least_float32(student_hidden) - _at_least_float32(teacher_hidden.detach())
    # Filled before squaring: a NaN in a row that does not count would reach the gradient through the square.
    error = difference.masked_fill(~valid[:, None], 0).square() / (scale + EPSILON)
    return LossOutput(total=error.mean(1).sum(), count=valid.sum(), metrics={})


def _at_least_float32(hidden: Tensor) -> Tensor:
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))
