"""Weights over the source tokens that spell a target token.

row(t) = sum over the pieces p of t of w(p) E[p], with w >= 0 and sum 1. Legend: M target ids, K pieces of the longest.
Source: embedding_init.md §1.2; worked numbers in §4.6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from alignment.byte_view import ByteView
from alignment.initializers.rows import SparseRows
from alignment.vocab import VocabAlignment

End = Literal["first", "last"]
"""The piece that weighs most."""

Weigh = Callable[[Tensor, Tensor], Tensor]
"""Pieces int64 [M, K] in the order of the text, padded by 0, and how many each row has, int64 [M] -> weights [M, K], up
to a factor of each row; what they are for padding is ignored."""


def equal(pieces: Tensor, counts: Tensor) -> Tensor:
    """The same weight for every piece: Fast Vocabulary Transfer (Gee et al., EMNLP 2022)."""
    return torch.ones(pieces.shape)


def geometric(decay: float, end: End) -> Weigh:
    """Weights that fall by the factor ``decay`` in [0, 1] with each piece away from ``end``.

    0 leaves only the piece at that end, 1 weighs all pieces equally. AdaptiVocab's weights exp(2 i) and exp(-2 i) of
    piece i are those with decay exp(-2).
    """
    return lambda pieces, counts: decay ** _distance(pieces, counts, end).double()


def linear(end: End) -> Weigh:
    """Weights n, n - 1, ..., 1 for the n pieces from ``end`` on."""
    return lambda pieces, counts: counts[:, None] - _distance(pieces, counts, end)


def by_length(lengths: np.ndarray) -> Weigh:
    """Weights proportional to positive ``lengths`` [V_source] of the pieces."""
    table = torch.from_numpy(lengths)
    return lambda pieces, counts: table[pieces]


def character_counts(view: ByteView) -> np.ndarray:
    """int64 [V]: of how many characters each token has at least one byte; a leading space counts.

    So a part of a character counts as one, whichever part it is. A token without bytes (a special one) counts as one.
    """
    tokens = [view.token_bytes(token) or b"" for token in range(view.vocab_size)]
    data = np.frombuffer(b"".join(tokens), dtype=np.uint8)
    continues = (data & 0xC0) == 0x80
    lengths = view.byte_lengths
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    begun = np.concatenate([[0], np.cumsum(~continues)])
    counts = begun[starts + lengths] - begun[starts]
    spelled = lengths > 0
    counts[spelled] += continues[starts[spelled]]
    return np.maximum(counts, 1)


def piece_rows(alignment: VocabAlignment, target_ids: Tensor, weigh: Weigh = equal) -> SparseRows:
    """Weights over the pieces of each target id, int64 [M], that sum to one.

    A piece that occurs twice counts twice. A target id without pieces has no weights.
    """
    positions, used = padded_positions(alignment.offsets, target_ids)
    pieces = torch.from_numpy(alignment.pieces).long()
    pieces = torch.where(used, pieces[positions] if len(pieces) else 0, 0)
    weights = torch.where(used, weigh(pieces, used.sum(dim=1)).double(), 0)
    weights /= weights.sum(dim=1, keepdim=True).where(used.any(dim=1, keepdim=True), 1)
    return SparseRows(torch.where(used, pieces, -1), weights.float())


def padded_positions(offsets: np.ndarray, rows: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Where the entries of some rows of a CSR matrix stand, side by side.

    Args:
        offsets: int64 [R + 1], row r's entries are those from ``offsets[r]`` to ``offsets[r + 1]``.
        rows: int64 [M].
        most: entries of a row that are taken at most, the first ones.

    Returns:
        positions int64 [M, K] with K at least 1, 0 where there is none; which of them are entries, bool [M, K].
    """
    starts, ends = (torch.from_numpy(bound)[rows] for bound in (offsets[:-1], offsets[1:]))
    counts = (ends - starts).clamp(min=0, max=most)
    place = torch.arange(max(int(counts.max()) if len(counts) else 0, 1))
    used = place < counts[:, None]
    return torch.where(used, starts[:, None] + place, 0), used


def _distance(pieces: Tensor, counts: Tensor, end: End) -> Tensor:
    """int64 [M, K]: how many pieces lie between each piece and ``end``."""
    place = torch.arange(pieces.shape[1]).expand(pieces.shape)
    return place if end == "first" else (counts[:, None] - 1 - place).clamp(min=0)
