"""What a method of initialisation gives: rows, or weights over the rows there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

_CACHED_ELEMENTS = 1 << 22
"""Old rows that are widened at a time: few enough to stay in a processor's cache, which is four times as fast."""


@dataclass(frozen=True)
class SparseRows:
    """M new rows as weighted sums of at most K old rows each.

    Attributes:
        indices: int64 [M, K], old rows; -1 pads. One row named twice counts twice.
        weights: [M, K] float32 or float64; what stands beside a -1 is ignored.
    """

    indices: Tensor
    weights: Tensor

    def combine(self, matrix: Tensor) -> Tensor:
        """The rows, [M, D], from the old ones ``matrix`` [V, D], in the precision of the more precise of the two.

        Nothing is read of a row whose weights are all padding: it is zero.
        """
        dtype = torch.promote_types(torch.promote_types(matrix.dtype, self.weights.dtype), torch.float32)
        combined = torch.empty(len(self.indices), matrix.shape[1], dtype=dtype)
        step = max(1, _CACHED_ELEMENTS // (matrix.shape[1] * self.indices.shape[1]))
        for start in range(0, len(combined), step):
            block = slice(start, start + step)
            combined[block] = _combine(self.indices[block], self.weights[block].to(dtype), matrix)
        return combined


def _combine(indices: Tensor, weights: Tensor, matrix: Tensor) -> Tensor:
    used = indices >= 0
    if not used.any():
        return torch.zeros(len(indices), matrix.shape[1], dtype=weights.dtype)
    # Only the rows in use are widened: the matrix may be a hundred times as large.
    rows, places = indices[used].unique(return_inverse=True)
    counts = used.sum(dim=1)
    return F.embedding_bag(
        places,
        matrix[rows].to(weights.dtype),
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=weights[used],
    )


def mean_row(matrix: Tensor) -> Tensor:
    """[D] float64, the mean of the rows of ``matrix`` [V, D], of which only a few are widened at a time."""
    blocks = matrix.split(max(1, _CACHED_ELEMENTS // matrix.shape[1]))
    return sum(block.sum(dim=0, dtype=torch.float64) for block in blocks) / len(matrix)


@dataclass(frozen=True)
class RowBlock:
    """What a method made for M target ids.

    Attributes:
        rows: weights over the student's rows, which serve the output bias as well; or the rows themselves, [M, D]
            float32.
        made: bool [M]; where it is False the method has nothing to say and the next one of the chain is asked.
        diagnostics: name -> float32 [M], such as the residual of an approximation.
        bias: float32 [M], the output bias of the same tokens, from a method that predicts it; None from all others.
    """

    rows: SparseRows | Tensor
    made: Tensor
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)
    bias: Tensor | None = None

    def values(self, matrix: Tensor) -> Tensor:
        """The rows themselves, [M, D] float32 or wider, given the student's ``matrix`` [V, D]."""
        return self.rows.combine(matrix) if isinstance(self.rows, SparseRows) else self.rows
