"""Sums over many ranges of unequal size, without a loop and without differences of running sums.

Running sums would lose what is small beside what comes before it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expand_ranges(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """All numbers of the ranges ``start[i]:end[i]``, one range after the other.

    Returns:
        int64 [sum of sizes] each: the range that a number belongs to, and the number.
    """
    sizes = (end - start).clamp(min=0)
    owner = torch.repeat_interleave(sizes)
    within = torch.arange(len(owner), device=start.device) - (sizes.cumsum(0) - sizes)[owner]
    return owner, start[owner] + within


def segment_sum(values: Tensor, segment: Tensor, count: int) -> Tensor:
    """Sum ``values [P]`` over segments, whose numbers are ``segment [P]``: ``[count]``; differentiable."""
    return values.new_zeros(count).index_add(0, segment, values)


def segment_max(values: Tensor, segment: Tensor, count: int) -> Tensor:
    """The largest of each segment's ``values [P]``: ``[count]``, -inf for an empty one; not differentiable."""
    return values.new_full((count,), -torch.inf).scatter_reduce(0, segment, values.detach(), "amax")


def segment_logsumexp(values: Tensor, segment: Tensor, count: int) -> Tensor:
    """``log(sum(exp(values)))`` of each segment: ``[count]``, -inf for an empty one; differentiable."""
    shift = segment_max(values, segment, count)
    shift = shift.masked_fill(shift == -torch.inf, 0)
    return segment_sum((values - shift[segment]).exp(), segment, count).log() + shift
