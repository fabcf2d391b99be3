"""New rows from the anchors nearest to a token in a donor's space.

row(t) = sum over the k anchors i nearest to the donor's row d(t) of w(t, i) E[i]. Legend: N anchors, M queries, D width
of the donor. Source: ``common_interpolation`` of mergekit-tokensurgeon (embedding_init.md §1.4, worked numbers §4.5).
On-purpose differences: everything is computed in float32 and wider, whatever the dtype of the rows; no [M, N] matrix
exists; of equally near anchors the lowest index is taken; least squares have a cut-off for singular directions; weights
by cosine are never negative.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["euclidean", "cosine"]

_BLOCK_ELEMENTS = 1 << 23
_SPARE_CANDIDATES = 16
_ERROR_IN_EPSILONS = 64
_LEAST_DISTANCE = 1e-6
_SINGULAR = 1e-12
"""Of the largest eigenvalue of a Gram matrix: directions below are noise of float32 rows."""


class NearestAnchors:
    """Exact search for the anchors nearest to a query.

    Candidates come from a float32 product; their distances are then computed one by one in float64 and rounded to
    float32, so that the result depends neither on the block a query is in nor on the order of a sum.

    Args:
        anchors: [N, D] of any floating dtype, finite; with ``cosine`` none of them zero.
        metric: ``euclidean``, or ``cosine`` for 1 - cosine.
    """

    def __init__(self, anchors: Tensor, metric: Metric) -> None:
        self.anchors = anchors.float()
        self._metric = metric
        self._norms = self.anchors.norm(dim=1)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` <= N anchors nearest to each query [M, D], nearest first, of equally near ones the lowest first.

        Returns:
            indices int64 [M, k], distances float32 [M, k].
        """
        block = max(1, _BLOCK_ELEMENTS // len(self.anchors))
        found = [self._search_block(part.float(), k) for part in queries.split(block)]
        return torch.cat([indices for indices, _ in found]), torch.cat([distances for _, distances in found])

    def _search_block(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores = queries @ self.anchors.T
        if self._metric == "cosine":
            scores /= self._norms
        else:
            scores -= self._norms.square() / 2
        return self._ranked(queries, scores, k, k + _SPARE_CANDIDATES)

    def _ranked(self, queries: Tensor, scores: Tensor, k: int, width: int) -> tuple[Tensor, Tensor]:
        """The k nearest of the ``width`` candidates with the best scores; of more where rounding may have misled."""
        width = min(width, len(self.anchors))
        best = scores.topk(width, dim=1)
        candidates = best.indices.sort(dim=1).values
        distances, order = self._distances(queries, candidates).sort(dim=1, stable=True)
        indices, distances = candidates.gather(1, order)[:, :k], distances[:, :k]
        unsure = best.values[:, k - 1] - best.values[:, -1] <= self._score_errors(queries, candidates)
        if width < len(self.anchors) and unsure.any():
            indices[unsure], distances[unsure] = self._ranked(queries[unsure], scores[unsure], k, 4 * width)
        return indices, distances

    def _score_errors(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """float32 [M]: a generous bound of the rounding error of scores, for anchors no longer than the candidates.

        A longer anchor that is no candidate lies far off, by more than its own error.
        """
        norms = queries.norm(dim=1)
        if self._metric == "euclidean":
            longest = self._norms[candidates].amax(dim=1)
            norms = longest * (longest + norms)
        return _ERROR_IN_EPSILONS * torch.finfo(torch.float32).eps * norms

    def _distances(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """float32 [M, K]: the distance of each query [M, D] to each of its candidates [M, K]."""
        step = max(1, _BLOCK_ELEMENTS // max(1, queries.numel()))
        precise = queries.double()[:, None]
        parts = []
        for part in candidates.split(step, dim=1):
            anchors = self.anchors[part].double()
            if self._metric == "cosine":
                products = (anchors * precise).sum(dim=2)
                norms = anchors.norm(dim=2) * precise.norm(dim=2)
                parts.append(1 - products / norms.clamp(min=torch.finfo(torch.float64).tiny))
            else:
                parts.append((anchors - precise).norm(dim=2))
        return torch.cat(parts, dim=1).float()


def distance_weights(distances: Tensor, metric: Metric) -> Tensor:
    """Weights >= 0 that sum to one, float64 [M, k]: 1 / distance, or the cosine where that is positive.

    Where no cosine is positive all weights are 0.
    """
    precise = distances.double()
    nearness = (1 - precise).clamp(min=0) if metric == "cosine" else 1 / precise.clamp(min=_LEAST_DISTANCE)
    sums = nearness.sum(dim=1, keepdim=True)
    return nearness / sums.where(sums > 0, 1)


def least_squares_weights(neighbours: Tensor, queries: Tensor) -> Tensor:
    """The weights w [M, k] float64 of least norm that minimise |sum_i w_i neighbours_i - query|.

    Args:
        neighbours: [M, k, D].
        queries: [M, D].
    """
    points = neighbours.double()
    gram = points @ points.mT
    values, vectors = torch.linalg.eigh(gram)
    kept = values > _SINGULAR * values[:, -1:]
    inverse = torch.where(kept, 1 / values.where(kept, 1), 0)
    projected = points @ queries.double()[:, :, None]
    return (vectors @ (inverse[:, :, None] * (vectors.mT @ projected)))[:, :, 0]


def barycentric_weights(neighbours: Tensor, queries: Tensor) -> Tensor:
    """The same under the constraint that the weights sum to one; they may be negative.

    Around the neighbours' mean the constraint vanishes: weights 1 / k give the mean, and of what is added to them the
    part of least norm sums to zero. So the result solves the KKT system of §1.4, also where that is singular.

    Args:
        neighbours: [M, k, D].
        queries: [M, D].
    """
    points = neighbours.double()
    centre = points.mean(dim=1)
    return 1 / points.shape[1] + least_squares_weights(points - centre[:, None], queries.double() - centre)
