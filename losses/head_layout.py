"""How the logits of a head are cut into tiles: parts of the vocabulary, blocks of rows.

Legend: V real vocabulary entries, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """Columns ``start`` to ``stop`` of the logits; all belong to ``part``."""

    part: int
    start: int
    stop: int


@dataclass(frozen=True)
class HeadLayout:
    """How the head's logits are laid out and computed.

    Attributes:
        widths: number of columns of each part; they add up to V.
        order: int64 [V], the weight row of each column; None if column i is row i.
        scale: factor of the logits before the soft cap.
        softcap: soft cap of the logits, or None.
        chunk_rows: rows of a tile.
        chunk_columns: columns of a tile.
    """

    widths: tuple[int, ...]
    order: Tensor | None
    scale: float
    softcap: float | None
    chunk_rows: int
    chunk_columns: int

    def tiles(self) -> Iterator[Tile]:
        """The columns part by part; only the last tile of a part is narrower than the others."""
        first = 0
        for part, width in enumerate(self.widths):
            for start in range(first, first + width, self.chunk_columns):
                yield Tile(part, start, min(start + self.chunk_columns, first + width))
            first += width

    def blocks(self, num_rows: int) -> Iterator[slice]:
        """The rows in blocks."""
        return (slice(start, start + self.chunk_rows) for start in range(0, num_rows, self.chunk_rows))

    def weight_rows(self, tile: Tile) -> Tensor | slice:
        """Which rows of the weight a tile's columns are."""
        return slice(tile.start, tile.stop) if self.order is None else self.order[tile.start : tile.stop]

    def column_of(self, labels: Tensor) -> Tensor:
        """Column of each token id in ``labels``."""
        if self.order is None:
            return labels
        column = torch.empty_like(self.order)
        column[self.order] = torch.arange(len(self.order), device=self.order.device)
        return column[labels]
