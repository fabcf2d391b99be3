"""What may be done to new rows after they were made (embedding_init.md §6.3, step 6)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from alignment.initializers.simple import standard_normals


def adjust(
    rows: Tensor,
    old_rows: Tensor,
    keys: np.ndarray,
    *,
    centre: bool = False,
    scale: float = 1.0,
    noise: float = 0.0,
    longest: float | None = None,
    seed: int = 0,
) -> Tensor:
    """New rows moved, scaled, disturbed and shortened, in this order.

    Args:
        rows: [M, D] float32, the new rows.
        old_rows: [V, D] float32, rows that training has made.
        keys: uint64 [M], a number for each row; its noise depends on it and on ``seed`` alone.
        centre: give the new rows the mean of the old ones.
        scale: factor of every row.
        noise: standard deviation of Gaussian noise, relative to that of the old rows in each dimension.
        longest: quantile (0, 1] of the old rows' norms to which longer rows are shortened; None for no limit.

    Returns:
        [M, D] float32.
    """
    if centre and len(rows):
        rows = rows - rows.mean(dim=0) + old_rows.mean(dim=0)
    rows = rows * scale
    if noise:
        draws = standard_normals(keys, seed=seed, name="noise", width=rows.shape[1])
        rows = rows + noise * old_rows.std(dim=0, correction=0) * draws.float()
    if longest is not None:
        norms = old_rows.norm(dim=1).sort().values
        limit = norms[round(longest * (len(norms) - 1))]
        rows = rows * (limit / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
    return rows
