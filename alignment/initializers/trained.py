"""Rows that training hardly touched, which are no anchors (Land & Bartolo, EMNLP 2024; embedding_init.md §3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 1 << 14
_SUSPECT_QUANTILE = 0.99
_LEAST_COSINE = 0.5


def undertrained(rows: Tensor, unused: Tensor) -> Tensor:
    """Which rows look as if training had left them alone.

    A row without a norm is one. Where some rows are known to be unused, so is every row that points their way: its
    cosine to their mean is above 0.5 and among the highest hundredth. Rows of low norm alone are kept: in models with
    tied embeddings the most frequent tokens have them.

    Args:
        rows: [V, D] of any floating dtype; rows that are not finite count as untrained.
        unused: bool [V], rows that no text can have used: padding of the matrix, reserved tokens.

    Returns:
        bool [V].
    """
    norms = _by_block(rows, lambda block: block.norm(dim=1))
    bad = ~norms.isfinite() | (norms == 0)
    known = unused & ~bad
    if not known.any():
        return bad
    direction = F.normalize(rows[known].float().mean(dim=0), dim=0)
    cosines = torch.where(bad, 0.0, _by_block(rows, lambda block: block @ direction) / norms.clamp_min(1e-30))
    # By rank and not by torch.quantile, which refuses long vectors.
    highest = cosines.sort().values[int(_SUSPECT_QUANTILE * (len(cosines) - 1))]
    return bad | unused | (cosines > max(float(highest), _LEAST_COSINE))


def _by_block(rows: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([measure(block.float()) for block in rows.split(_BLOCK)])
