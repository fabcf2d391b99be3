"""Rows that say nothing of the token they are for: copies of one row, and draws from the old rows' distribution.

Legend: M new rows, V old rows, D their width. Moments are those of the population (divided by V, not V - 1).
Source: embedding_init.md §1.1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignment.initializers.rows import SparseRows, mean_row

_BLOCK_ROWS = 1 << 13


def zero_rows(count: int) -> SparseRows:
    """``count`` rows of zeros: weights over no row at all."""
    return SparseRows(torch.full((count, 1), -1), torch.zeros(count, 1))


def copied_rows(source_id: int, count: int) -> SparseRows:
    """``count`` times the row of one source token."""
    return SparseRows(torch.full((count, 1), source_id), torch.ones(count, 1))


def standard_normals(row_keys: np.ndarray, *, seed: int, name: str, width: int) -> Tensor:
    """Draws from N(0, 1), float64 [M, ``width``]: each row a function of its key, the seed and the tensor's name alone.

    A counter-based generator (Philox, Salmon et al. 2011) is started for each row, so that neither the order of the
    rows nor the blocks in which they are asked for matter.

    Args:
        row_keys: uint64 [M].
        name: of the tensor, so that two tensors of one model get independent draws.
    """
    tensor_key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")
    draws = np.empty((len(row_keys), width))
    for row, key in zip(draws, row_keys, strict=True):
        # As an array of uint64: from a list of Python integers NumPy may make float64, and keys lose their last bits.
        bits = np.random.Philox(key=np.array([tensor_key, key], dtype=np.uint64))
        np.random.Generator(bits).standard_normal(out=row)
    return torch.from_numpy(draws)


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution of rows.

    Attributes:
        mean: float64 [D].
        factor: float64, what standard normal draws are multiplied by: [D] standard deviations of independent
            dimensions, or the lower triangular [D, D] Cholesky factor of a covariance.
    """

    mean: Tensor
    factor: Tensor

    def rows(self, draws: Tensor) -> Tensor:
        """The rows float32 [M, D] for standard normal ``draws`` float64 [M, D]."""
        spread = draws * self.factor if self.factor.ndim == 1 else draws @ self.factor.T
        return (self.mean + spread).float()


def independent_gaussian(rows: Tensor) -> Gaussian:
    """N(mean, variance) of every dimension of ``rows`` [V, D] by itself."""
    mean = mean_row(rows)
    squares = sum((block.double() - mean).square().sum(dim=0) for block in rows.split(_BLOCK_ROWS))
    return Gaussian(mean, (squares / len(rows)).sqrt())


def multivariate_gaussian(rows: Tensor, *, covariance_scale: float, ridge: float) -> Gaussian:
    """N(mean, ``covariance_scale`` * covariance) of ``rows`` [V, D] (Hewitt 2021).

    Args:
        covariance_scale: 1 draws new rows as spread out as the old ones.
        ridge: added to the covariance's diagonal, as a share of the mean variance: keeps it positive definite where
            there are fewer rows than dimensions.
    """
    mean = mean_row(rows)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for block in rows.split(_BLOCK_ROWS):
        centred = block.double() - mean
        covariance.addmm_(centred.T, centred, alpha=covariance_scale / len(rows))
    variance = covariance.diagonal().mean()
    if variance == 0:
        return Gaussian(mean, torch.zeros_like(mean))
    covariance.diagonal().add_(ridge * variance)
    return Gaussian(mean, torch.linalg.cholesky(covariance))
