"""The few directions that a matrix lies closest to (OFA; Liu et al. 2024; embedding_init.md §1.9)."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_ROWS = 1 << 13


def leading_directions(matrix: Tensor, rank: int) -> Tensor:
    """The first right singular vectors P of ``matrix`` [V, D], [rank, D] float64, found from its D x D Gram matrix.

    E P'P is the matrix of that rank closest to E. OFA stores it as coordinates F = E P' and directions P (up to a
    scale that it moves from one to the other) and makes new rows of coordinates: a weighted sum of rows of F, times P.
    That is the same weighted sum of rows of E, projected by P'P.

    Raises:
        ValueError: the rank is not between 1 and D.
    """
    width = matrix.shape[1]
    if not 1 <= rank <= width:
        raise ValueError(f"a matrix of width {width} cannot be given rank {rank}: expected 1 to {width}")
    gram = torch.zeros(width, width, dtype=torch.float64)
    for block in matrix.split(_BLOCK_ROWS):
        gram += block.double().T @ block.double()
    return torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank].T.contiguous()
