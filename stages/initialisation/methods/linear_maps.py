"""Rows of the donor mapped into the student's space."""

from __future__ import annotations

from torch import Tensor

from alignment.initializers.linear_maps import LinearMap, Moments, moments, procrustes_map, ridge_map
from alignment.initializers.rows import RowBlock
from stages.initialisation.methods.donor_space import DonorSpace
from stages.initialisation.task import Estimate, RowTask
from stages.initializers.linear_maps import ProcrustesOptions, RidgeMapOptions

_LEAST_ANCHORS = 2


class MappedRows:
    """The donor's rows under a map that is fitted on the shared tokens."""

    def __init__(self, options: ProcrustesOptions | RidgeMapOptions, task: RowTask) -> None:
        self._options = options
        self._task = task
        self._donor = DonorSpace(options.method, task, _LEAST_ANCHORS)

    def estimate(self, new_rows: int) -> Estimate:
        donor, student = self._donor.width, self._task.rows.shape[1]
        anchors = len(self._task.anchor_target)
        itemsize = self._task.rows.element_size()
        memory = itemsize * anchors * (donor + student) + 8 * (2 * donor * donor + 4 * donor * student)
        fitting = 2.0 * anchors * donor * (donor + student) + 20.0 * max(donor, student) ** 3
        return Estimate(memory, fitting + 2.0 * new_rows * donor * student)

    def fit(self) -> None:
        fitted = moments(self._donor.anchors(), self._task.rows[self._task.anchor_source])
        self._map = self._solve(fitted)
        self._task.transplant.progress(
            f"{self._options.method}: {self._task.name}, relative error {self._map.relative_error:.3f} on "
            f"{len(self._task.anchor_target)} shared tokens"
        )

    def rows(self, target_ids: Tensor) -> RowBlock:
        rows, has = self._donor.of(target_ids)
        return RowBlock(self._map(rows), has)

    def _solve(self, fitted: Moments) -> LinearMap:
        if isinstance(self._options, ProcrustesOptions):
            return procrustes_map(fitted, self._options.scale)
        return ridge_map(fitted, self._options.ridge)
