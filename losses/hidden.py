"""Hidden-state matching at chunk ends (the ALM paper's auxiliary loss, alm.md §1.8).

Legend: N chunk ends, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from losses.output import LossOutput

EPSILON = 1e-8

DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {"l2": torch.square, "l1": torch.abs}
"""Name of a distance -> what it makes of the difference in each channel."""


def channel_magnitude(teacher_hidden: Tensor, valid: Tensor, distance: str = "l2") -> tuple[Tensor, Tensor]:
    """Sum of squares (``l2``) or absolute values (``l1``) of each channel, and the number of valid rows.

    Add both up over all micro-batches and ranks of a step and divide: the ``scale`` of ``hidden_state_loss``.

    Args:
        teacher_hidden: ``[N, D]`` hidden states.
        valid: ``[N]`` bool, rows that count.
        distance: a key of ``DISTANCES``.

    Returns:
        ``[D]`` in float32 (float64 for float64 inputs), and an int64 scalar.
    """
    magnitudes = DISTANCES[distance](_at_least_float32(teacher_hidden.detach()))
    return magnitudes.masked_fill(~valid[:, None], 0).sum(0), valid.sum()


def hidden_state_loss(
    teacher_hidden: Tensor, student_hidden: Tensor, valid: Tensor, *, scale: Tensor, distance: str = "l2"
) -> LossOutput:
    """Distance in each channel relative to the teacher's size there, averaged over channels.

    The units are chunk ends. The scale comes from outside so that it can be that of the whole global batch: a
    normaliser computed here would depend on how the batch was split. Differentiable in ``student_hidden`` only.

    Args:
        teacher_hidden, student_hidden: ``[N, D]`` hidden states at the same chunk ends, any floating dtype.
        valid: ``[N]`` bool, rows that count; the others may hold anything.
        scale: mean of ``channel_magnitude`` over the global batch: ``[D]``, or one number for all channels.
        distance: ``l2``, the square of the difference, or ``l1``, its absolute value.

    Raises:
        ValueError: the shapes differ; a student of another width needs a projection first.
    """
    if teacher_hidden.shape != student_hidden.shape or scale.shape not in (teacher_hidden.shape[1:], ()):
        raise ValueError(
            f"teacher_hidden {tuple(teacher_hidden.shape)} and student_hidden {tuple(student_hidden.shape)} must have"
            f" one shape [N, D], and scale {tuple(scale.shape)} must be [D] or one number; project the student if"
            " widths differ"
        )
    difference = _at_least_float32(student_hidden) - _at_least_float32(teacher_hidden.detach())
    # Filled before the distance: a NaN in a row that does not count would reach the gradient through it.
    error = DISTANCES[distance](difference.masked_fill(~valid[:, None], 0)) / (scale + EPSILON)
    return LossOutput(total=error.mean(1).sum(), count=valid.sum(), metrics={})


def _at_least_float32(hidden: Tensor) -> Tensor:
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))
