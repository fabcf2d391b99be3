"""Which atoms may score best for many residuals at once, from columns of the Gram matrix in half precision."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 128
"""Atoms scored at a time. One tile of all columns in use stays in the processor's cache while a batch reads it."""
COLUMN = torch.float16
PAIRS = 2**14
"""Tiles searched for candidates at a time."""
MAX_TILES = 64
"""A residual with candidates in more tiles is left undecided."""


class ColumnsExhausted(Exception):
    """A batch needs more columns at once than there is memory for; fewer targets need fewer."""


class Candidates(NamedTuple):
    """Atoms that may score best, in the order of their owners and then of the atoms.

    Attributes:
        owners, atoms: int64 [P], pairs of a residual and an atom. A residual that is in no pair has all atoms as its
            candidates: float16 tells nothing about it.
    """

    owners: Tensor
    atoms: Tensor


class GramColumns:
    """Columns <s_i, u_j> of the Gram matrix between N atoms s_i and some of them as unit vectors u_j, made when needed.

    A column costs one product of the atoms with a vector and is then shared by all targets: atoms are picked again and
    again. Where not all columns fit, those that went unused for the longest time make room. The inner products of all
    atoms with the targets at hand are kept as columns too.

    Args:
        atoms: [N, D], any floating-point type, no zero rows.
        scales: [N], by which they are divided to give s_i, of norms of at most 1.
        capacity: columns of atoms to keep, at least as many as one target needs.
        targets: most targets at a time.

    Attributes:
        atoms: float32, s_i, with zero rows behind them.
        norms: float32, of these.
    """

    def __init__(self, atoms: Tensor, scales: Tensor, capacity: int, targets: int) -> None:
        count, device = len(atoms), atoms.device
        self._tiles = tile_count(count)
        self.atoms = torch.zeros(self._tiles * TILE, atoms.shape[1], device=device)
        for start in range(0, count, TILE):
            part = slice(start, min(start + TILE, count))
            self.atoms[part] = atoms[part] / scales[part, None]
        self.norms = self.atoms.norm(dim=1)
        self._tile_norms = self.norms.view(-1, TILE).amax(dim=1)
        slots = targets + min(capacity, count)
        # Zeros take no memory until they are overwritten. The first slots are the targets'.
        self._columns = torch.zeros(self._tiles, slots, TILE, dtype=COLUMN, device=device)
        self._copy = torch.empty(slots, TILE, dtype=COLUMN, device=device)
        self._scores = torch.empty(self._tiles, targets, TILE, dtype=torch.int16, device=device)
        self._slot_of = torch.full((count,), -1, device=device)
        self._atom_in = torch.full((slots,), -1, device=device)
        self._last_used = torch.full((slots,), -1, device=device)
        self._last_used[:targets] = torch.iinfo(torch.int64).max
        self._filled = targets
        self._batch = 0

    def start_batch(self, slots: Tensor | None = None) -> None:
        """Allow all columns to make room from now on, but those in ``slots``."""
        self._batch += 1
        if slots is not None:
            self._last_used[slots] = self._batch

    def set_targets(self, targets: Tensor) -> None:
        """Take float32 unit vectors ``targets`` [B, D] as those at hand."""
        self._fill(slice(0, len(targets)), targets)

    def slots(self, atoms: Tensor) -> Tensor:
        """Where the columns of ``atoms`` [B] are kept, int64 [B]; makes those that are missing.

        Raises:
            ColumnsExhausted: this batch already uses so many that the new ones have no room.
        """
        slots = self._slot_of[atoms]
        self._last_used[slots[slots >= 0]] = self._batch
        new = atoms[slots < 0].unique()
        if len(new):
            self._make(new)
        return self._slot_of[atoms]

    def _make(self, new: Tensor) -> None:
        # What was never used carries -1 and goes first. In the order of the slots, which a slice may then replace.
        oldest = self._last_used.argsort(stable=True)[: len(new)].sort().values
        if len(oldest) < len(new) or bool((self._last_used[oldest] >= self._batch).any()):
            raise ColumnsExhausted
        evicted = self._atom_in[oldest]
        self._slot_of[evicted[evicted >= 0]] = -1
        self._slot_of[new] = oldest
        self._atom_in[oldest] = new
        self._last_used[oldest] = self._batch
        first, last = int(oldest[0]), int(oldest[-1])
        self._filled = max(self._filled, last + 1)
        run = last - first + 1 == len(oldest)
        self._fill(slice(first, last + 1) if run else oldest, self.atoms[new] / self.norms[new, None])

    def _fill(self, slots: Tensor | slice, vectors: Tensor) -> None:
        for tile, atoms in enumerate(self.atoms.split(TILE)):
            self._columns[tile, slots] = (vectors @ atoms.T).to(COLUMN)

    def candidates(self, targets: Tensor, slots: Tensor, coefficients: Tensor, error: Tensor) -> Candidates:
        """Atoms i that may have the greatest |<s_i, r_b>|, where r_b = y_b - sum_j c_bj u_j.

        Args:
            targets: int64 [R], y, of those at hand.
            slots, coefficients: [R, t], the columns u_j and float64 c_j.
            error: [R], norm by which r_b may be off already.
        """
        relative, per_norm, absolute = self._errors(coefficients)
        per_norm = per_norm + error
        terms = torch.cat([slots, targets[:, None]], dim=1)
        factors = F.pad(-coefficients, (0, 1), value=1.0).to(COLUMN)
        scores, maxima = self._scored(terms, factors)
        slack = relative * maxima + self._tile_norms[:, None] * per_norm + absolute
        # The best score is surely no less than the floor; an atom that may reach it is a candidate.
        floor = (maxima - slack).amax(dim=0)
        in_reach = maxima + slack >= floor
        # A coefficient beyond float16 makes the floor NaN.
        undecided = ~(floor > slack.amax(dim=0)) | (in_reach.sum(dim=0) > MAX_TILES)
        owners, tiles = (in_reach & ~undecided).T.nonzero(as_tuple=True)
        least = (floor[owners] - slack[tiles, owners])[:, None]
        found = []
        for part in torch.arange(len(owners), device=owners.device).split(PAIRS):
            pairs, within = (scores[tiles[part], owners[part]].float() >= least[part]).nonzero(as_tuple=True)
            found.append(torch.stack([owners[part][pairs], tiles[part][pairs] * TILE + within]))
        return Candidates(*torch.cat(found, dim=1)) if found else Candidates(owners, owners)

    def _errors(self, coefficients: Tensor) -> tuple[float, Tensor, Tensor]:
        """How far scores may be off: by a share of themselves, by a share [R] of the atom's norm and by a number [R].

        Columns, coefficients and their sums are rounded to float16. The roundings are taken to add up like a random
        walk over entries of 1, though most entries are far smaller.
        """
        half, single = torch.finfo(COLUMN), torch.finfo(torch.float32)
        products = single.eps * math.sqrt(self.atoms.shape[1])
        per_norm = 2 * half.eps * coefficients.norm(dim=1) + products
        absolute = half.smallest_normal * half.eps * (1 + coefficients.abs().sum(dim=1))
        return half.eps, per_norm.float(), absolute.float()

    def _scored(self, terms: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """All scores, float16 [tiles, R, TILE], until the next call; the greatest of each tile, float32 [tiles, R]."""
        # Without their sign bits, floating-point numbers are in the order of their bits, and integers compare faster.
        magnitude = torch.iinfo(torch.int16).max
        scores = self._scores[:, : len(terms)]
        maxima = torch.empty(self._tiles, len(terms), dtype=torch.int16, device=terms.device)
        # Reading a tile in order first is much faster than reading it from memory at random.
        dense = terms.numel() > self._filled
        for tile in range(self._tiles):
            columns = self._columns[tile, : self._filled]
            if dense:
                columns = self._copy[: self._filled].copy_(columns)
            bits = weighted_sums(columns, terms, factors).view(torch.int16)
            torch.bitwise_and(bits, magnitude, out=scores[tile])
            torch.amax(scores[tile], dim=1, out=maxima[tile])
        return scores.view(COLUMN), maxima.view(COLUMN).float()


def weighted_sums(rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """sum_j w_bj g_j for ``rows`` g_j at ``indices`` [B, t] and ``weights`` w [B, t] of the same type; t > 0."""
    return F.embedding_bag(indices, rows, mode="sum", per_sample_weights=weights)


def tile_count(atoms: int) -> int:
    """Tiles that hold so many atoms."""
    return -(-atoms // TILE)
