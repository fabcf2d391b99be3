"""New rows brought to the length of the rows there are (embedding_init.md §1.2 and §4.7).

A mean of rows is shorter than they are, so a token made that way starts out quieter than its neighbours. "Beyond
Initialization Loss" (arXiv 2608.03494) gives it the median norm of the rows of its script.

Legend: V rows, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 24


def row_norms(rows: Tensor) -> np.ndarray:
    """Euclidean norms, float64 [V], of ``rows`` [V, D] of any floating dtype."""
    blocks = rows.split(max(1, _BLOCK_ELEMENTS // rows.shape[1]))
    return torch.cat([torch.linalg.vector_norm(block.double(), dim=1) for block in blocks]).numpy()


def median_norms(norms: np.ndarray, known: np.ndarray, group: np.ndarray, fewest: int) -> np.ndarray:
    """The median norm that is usual where each row belongs: float64 [V].

    Args:
        norms: float64 [V]; rows of norm 0 stand for tokens that were never trained and are no example.
        known: bool [V], the rows that set the measure.
        group: int [V], the group of each row, -1 for none.
        fewest: groups with fewer known rows take the median of all known rows, like rows of no group.

    Raises:
        ValueError: no known row has a norm above 0.
    """
    known = known & (norms > 0)
    if not known.any():
        raise ValueError("no row of known norm to take the median of")
    medians = np.full(len(norms), np.median(norms[known]))
    numbers, counts = np.unique(group[known & (group >= 0)], return_counts=True)
    for number in numbers[counts >= fewest]:
        members = group == number
        medians[members] = np.median(norms[known & members])
    return medians


def rescale(rows: Tensor, norms: Tensor) -> Tensor:
    """``rows`` [M, D] with the lengths ``norms`` [M] and their own directions, in their own dtype; 0 stays 0."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    own = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    scaled = wide * (norms[:, None].to(wide.dtype) / own.clamp(min=torch.finfo(wide.dtype).tiny))
    return torch.where(own > 0, scaled, wide).to(rows.dtype)
