"""Rows that the user names: a target token made of the mean of given source tokens (embedding_init.md §6.3, step 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from alignment.byte_view import ByteView
from alignment.initializers.rows import SparseRows
from alignment.token_index import TokenIndex, UnknownToken
from stages.stage import StageError

Named = str | int | Sequence[str | int]
"""One token or several, each as ``TokenIndex.named`` takes it."""


def override_rows(
    source: ByteView, target: ByteView, override: Mapping[str, Named], source_rows: int
) -> tuple[torch.Tensor, SparseRows]:
    """The target ids that the user names, int64 [M], and equal weights over the source tokens named for each.

    Args:
        source_rows: rows of the student's matrix.

    Raises:
        StageError: a token does not exist or has no row.
    """
    ours, theirs = TokenIndex(target), TokenIndex(source, source_rows)
    try:
        named = {
            ours.named(token): [theirs.named(name) for name in _listed(names)] for token, names in override.items()
        }
    except UnknownToken as error:
        raise StageError(f"override: {error}") from None
    longest = max(map(len, named.values()), default=1)
    indices = torch.full((len(named), longest), -1)
    weights = torch.zeros(len(named), longest)
    for row, ids in enumerate(named.values()):
        indices[row, : len(ids)] = torch.tensor(ids)
        weights[row, : len(ids)] = 1 / len(ids)
    return torch.tensor(list(named), dtype=torch.int64), SparseRows(indices, weights)


def _listed(names: Named) -> Sequence[str | int]:
    return [names] if isinstance(names, str | int) else names
