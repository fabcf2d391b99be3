"""New rows from the old rows of tokens that are similar in an auxiliary space (embedding_init.md §1.5 to §1.9, §5.2).

    row(t) = sum over o of w_o E[o],   w = weigh(select(cos(x_t, x_o) over all candidates o))

    FOCUS, CLP+     all candidates,       sparsemax
    WECHSEL, OFA    the k most similar,   softmax with a temperature
    CLP             all candidates,       cos / sum of cos

x are vectors of the target's and the source's tokens in one space, E the old rows. Similarities exist for a block of
targets at a time, never for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from alignment.initializers.rows import SparseRows

Weigh = Callable[[Tensor], Tensor]
"""Cosines [B, K] float64, each row in descending order -> weights [B, K] float64 that sum to one in each row."""

_WORKING_BYTES = 256 << 20
_FIRST_SUPPORT = 256  # on random directions a support has at most 88 tokens (embedding_init.md §5.2)
_MARGIN = 1e-4  # well above what float32 and the order of a sum can change in a cosine


@dataclass(frozen=True)
class Candidates:
    """The N old tokens that new rows may be made of.

    Attributes:
        ids: int64 [N], rows of the old matrix, ascending.
        directions: [N, A] float32, their vectors scaled to length one.
    """

    ids: Tensor
    directions: Tensor

    @classmethod
    def from_vectors(cls, ids: Tensor, vectors: Tensor) -> Candidates:
        """Tokens ``ids`` int64 [N] with their ``vectors`` [N, A]; those whose vector is zero are left out."""
        order = ids.argsort()
        directions = unit_rows(vectors[order])
        usable = (directions != 0).any(dim=1)
        return cls(ids[order][usable], directions[usable])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TopK:
    """Selects the ``limit`` most similar candidates, or all where there are fewer; of equals, those with low ids."""

    limit: int

    def threshold(self, cosines: Tensor) -> Tensor:
        """The lowest cosine that is selected, [B, 1], of all cosines [B, N]."""
        return cosines.topk(min(self.limit, cosines.shape[1]), dim=1).values[:, -1:]


@dataclass(frozen=True)
class SparsemaxSupport:
    """Selects the candidates to which sparsemax over all of them gives any weight.

    Attributes:
        limit: bounds how many are looked at. Vectors that hardly tell tokens apart give some weight to every
            candidate; then it is sparsemax over the ``limit`` most similar.
    """

    limit: int | None = None

    def threshold(self, cosines: Tensor) -> Tensor:
        """What sparsemax subtracts, [B, 1], given all cosines [B, N].

        It depends on the largest values alone, so K of them are enough once the smallest of those K gets no weight.
        """
        most = min(self.limit or cosines.shape[1], cosines.shape[1])
        count = _FIRST_SUPPORT
        while True:
            largest = cosines.topk(min(count, most), dim=1).values
            threshold = _sparsemax_threshold(largest.double()).to(cosines.dtype)
            if count >= most or bool((largest[:, -1:] <= threshold).all()):
                return threshold
            count *= 2


Select = TopK | SparsemaxSupport


def unit_rows(vectors: Tensor) -> Tensor:
    """The rows of [N, A] scaled to length one, float32; zero rows stay zero."""
    return torch.cat([F.normalize(block.double(), eps=1e-30).float() for block in vectors.split(1 << 14)])


def sparsemax(values: Tensor) -> Tensor:
    """The point of the probability simplex nearest to ``values`` [..., K] (Martins & Astudillo, ICML 2016)."""
    descending = values.sort(dim=-1, descending=True).values
    return (values - _sparsemax_threshold(descending)).clamp(min=0)


def softmax(temperature: float) -> Weigh:
    """Weights proportional to exp(cosine / ``temperature``)."""
    return lambda cosines: (cosines / temperature).softmax(dim=-1)


def similar_rows(queries: Tensor, candidates: Candidates, select: Select, weigh: Weigh) -> SparseRows:
    """Weights over the old rows for new tokens, by the cosines of their vectors ``queries`` [M, A].

    Candidates are found with a matrix product and those close to the threshold compared again one by one, so that
    neither the choice nor the weights depend on how many targets are asked for at once. A zero query has no weights,
    nor has any where there are no candidates.

    Returns:
        float32 weights, the most similar candidates first, equally similar ones by id.
    """
    directions = unit_rows(queries)
    asked = (directions != 0).any(dim=1).nonzero().flatten()
    indices, weights = torch.full((len(queries), 1), -1), torch.zeros(len(queries), 1)
    if not len(candidates) or not len(asked):
        return SparseRows(indices, weights)
    block_rows = max(1, _WORKING_BYTES // (12 * len(candidates)))
    for block in asked.split(block_rows):
        found = _similar_block(directions[block], candidates, select, weigh)
        missing = max(0, found.weights.shape[1] - weights.shape[1])
        indices, weights = F.pad(indices, (0, missing), value=-1), F.pad(weights, (0, missing))
        indices[block, : found.indices.shape[1]] = found.indices
        weights[block, : found.weights.shape[1]] = found.weights
    return SparseRows(indices, weights)


def _similar_block(queries: Tensor, candidates: Candidates, select: Select, weigh: Weigh) -> SparseRows:
    """The same for so few unit queries [B, A] that their cosines to all candidates may be held at once."""
    approximate = queries @ candidates.directions.T
    near = (approximate >= select.threshold(approximate) - _MARGIN).nonzero()
    counts = near[:, 0].bincount(minlength=len(queries))[:, None]
    used = torch.arange(int(counts.max())) < counts
    positions = torch.zeros(used.shape, dtype=torch.int64)
    positions[used] = near[:, 1]
    cosines = _exact_cosines(queries, candidates.directions, positions).masked_fill_(~used, -torch.inf)
    # Positions ascend as the ids do, so a stable sort leaves equally similar candidates in the order of their ids.
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    weights = weigh(cosines[:, : select.limit]).float()
    indices = candidates.ids[positions.gather(1, order[:, : select.limit])].masked_fill(weights == 0, -1)
    width = max(int((weights > 0).sum(dim=1).max()), 1)
    return SparseRows(indices[:, :width], weights[:, :width])


def _exact_cosines(queries: Tensor, directions: Tensor, positions: Tensor) -> Tensor:
    """The cosines of queries [B, A] and their candidates ``positions`` [B, K], float64 [B, K].

    A matrix product may round a row differently in another block; a sum over one row's own products does not.
    """
    block_rows = max(1, _WORKING_BYTES // (8 * queries.shape[1] * positions.shape[1]))
    blocks = zip(queries.split(block_rows), positions.split(block_rows), strict=True)
    return torch.cat(
        [(query[:, None] * directions[position]).sum(dim=-1, dtype=torch.float64) for query, position in blocks]
    )


def _sparsemax_threshold(descending: Tensor) -> Tensor:
    """tau with sum of max(values - tau, 0) = 1, [..., 1], for values [..., K] in descending order, padded with -inf."""
    ranks = torch.arange(1, descending.shape[-1] + 1, dtype=descending.dtype)
    excess = descending.cumsum(dim=-1) - 1
    support = (ranks * descending > excess).sum(dim=-1, keepdim=True)
    return excess.gather(-1, support - 1) / support


@dataclass(frozen=True)
class ProportionalRows:
    """All candidates weighted by cos / sum of cos (CLP-Transfer; Ostendorff & Rehm 2023; embedding_init.md §1.7).

    With unit vectors x the sum over o of cos(t, o) E[o] is x_t (X^T E): two sums over the candidates, made once, serve
    every target. Weights can be negative and, where the sum of the cosines is small, of any size.

    Attributes:
        weighted_rows: [A, D] float64, X^T E.
        direction: [A] float64, the sum of the candidates' unit vectors.
        count: N.
    """

    weighted_rows: Tensor
    direction: Tensor
    count: int

    @classmethod
    def fit(cls, candidates: Candidates, matrix: Tensor) -> ProportionalRows:
        """Sum over the candidates' rows of the old ``matrix`` [V, D]."""
        weighted_rows = torch.zeros(candidates.directions.shape[1], matrix.shape[1], dtype=torch.float64)
        for ids, directions in zip(candidates.ids.split(1 << 12), candidates.directions.split(1 << 12), strict=True):
            weighted_rows += directions.double().T @ matrix[ids].double()
        return cls(weighted_rows, candidates.directions.sum(dim=0, dtype=torch.float64), len(candidates))

    def rows(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [M, D] float32 of tokens with the vectors ``queries`` [M, A], and their mean cosines [M] float32.

        Where the mean cosine is not positive, the weights have the wrong signs and the row means nothing.
        """
        directions = unit_rows(queries).double()
        total = directions @ self.direction
        rows = (directions @ self.weighted_rows) / total[:, None]
        return rows.float(), (total / max(self.count, 1)).float()
