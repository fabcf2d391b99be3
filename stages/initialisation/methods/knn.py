"""Rows from the shared tokens nearest in a donor's space."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.initializers.knn import (
    NearestAnchors,
    barycentric_weights,
    distance_weights,
    least_squares_weights,
)
from alignment.initializers.rows import RowBlock, SparseRows
from stages.initialisation.methods.donor_space import DonorSpace
from stages.initialisation.task import Estimate, RowTask
from stages.initializers.knn import KnnOptions

_GATHERED_AT_ONCE = 1 << 23


class Knn:
    """A weighted sum of the rows of the nearest shared tokens."""

    def __init__(self, options: KnnOptions, task: RowTask) -> None:
        self._options = options
        self._task = task
        self._donor = DonorSpace("knn", task, least_anchors=options.k)

    def estimate(self, new_rows: int) -> Estimate:
        anchors, width, k = len(self._task.anchor_target), self._donor.width, self._options.k
        # Float32 anchors, a block of scores, and a block of float64 neighbours with what is made of it.
        memory = 4 * anchors * width + 48 * max(_GATHERED_AT_ONCE, k * width)
        solving = 0 if self._options.weights == "distance" else 2.0 * k * k * width + 20.0 * k**3
        return Estimate(memory, new_rows * (2.0 * anchors * width + solving))

    def fit(self) -> None:
        self._nearest = NearestAnchors(self._donor.anchors(), self._options.metric)

    def rows(self, target_ids: Tensor) -> RowBlock:
        queries, has = self._donor.of(target_ids)
        sources = torch.full((len(target_ids), self._options.k), -1)
        weights, nearest = torch.zeros(sources.shape), torch.full((len(target_ids),), torch.nan)
        found, distances = self._nearest.search(queries[has], self._options.k)
        sources[has] = self._task.anchor_source[found]
        weights[has] = self._weights(queries[has], found, distances).float()
        nearest[has] = distances[:, 0]
        diagnostics = {"nearest_distance": nearest, "weight_norm": weights.abs().sum(dim=1)}
        return RowBlock(SparseRows(sources, weights), (weights != 0).any(dim=1), diagnostics)

    def _weights(self, queries: Tensor, found: Tensor, distances: Tensor) -> Tensor:
        if self._options.weights == "distance":
            return distance_weights(distances, self._options.metric)
        solve = barycentric_weights if self._options.weights == "barycentric" else least_squares_weights
        step = max(1, _GATHERED_AT_ONCE // (self._options.k * self._donor.width))
        blocks = zip(queries.split(step), found.split(step), strict=True)
        return torch.cat([solve(self._nearest.anchors[ids], block) for block, ids in blocks])
