"""Rows as sparse combinations of shared tokens, found in a donor's space."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.initializers.omp import GIB, OrthogonalMatchingPursuit, memory_plan
from alignment.initializers.rows import RowBlock, SparseRows
from stages.initialisation.methods.donor_space import DonorSpace
from stages.initialisation.task import Estimate, RowTask
from stages.initializers.omp import OmpOptions
from stages.stage import StageError, StageInterrupted


class Omp:
    """What approximates a token's donor row, taken of the student's rows instead."""

    def __init__(self, options: OmpOptions, task: RowTask) -> None:
        self._options = options
        self._task = task
        self._donor = DonorSpace("omp", task, least_anchors=options.k)
        try:
            self._memory = memory_plan(
                len(task.anchor_target),
                self._donor.width,
                min(options.k, self._donor.width),
                int(options.memory_gib * GIB),
            )
        except ValueError as error:
            raise StageError(f"omp: memory_gib: {error}") from None

    def estimate(self, new_rows: int) -> Estimate:
        anchors, width, k = len(self._task.anchor_target), self._donor.width, self._options.k
        # Gram columns of all anchors, first products of all rows, then k updates of them.
        return Estimate(
            self._memory.total_bytes, 2.0 * anchors * width * (anchors + new_rows) + k**2 * new_rows * anchors
        )

    def fit(self) -> None:
        atoms = self._donor.anchors()
        self._donor_mean = atoms.mean(dim=0, dtype=torch.float32)
        if self._options.centre:
            atoms = atoms.float() - self._donor_mean
            own = self._task.rows[self._task.anchor_source]
            self._own_mean = own.mean(dim=0, dtype=torch.promote_types(own.dtype, torch.float32))
        try:
            self._pursuit = OrthogonalMatchingPursuit(
                atoms,
                self._options.k,
                select=self._options.select,
                ridge=self._options.ridge,
                stop_tol=self._options.stop_tol,
                memory_budget=int(self._options.memory_gib * GIB),
            )
        except ValueError as error:
            raise StageError(f"omp: {error}") from None

    def rows(self, target_ids: Tensor) -> RowBlock:
        targets, has = self._donor.of(target_ids)
        if self._options.centre:
            targets[has] -= self._donor_mean
        found = self._pursuit.solve(targets, self._stop_if_asked)
        atoms = found.rows.indices
        sources = torch.where(atoms >= 0, self._task.anchor_source[atoms.clamp(min=0)], -1)
        rows: SparseRows | Tensor = SparseRows(sources, found.rows.weights)
        if self._options.centre:
            rest = 1 - found.rows.weights.sum(dim=1, keepdim=True)
            rows = rows.combine(self._task.rows) + rest * self._own_mean
        diagnostics = {
            "residual": found.relative_residual,
            "atoms": found.used.float(),
            "weight_l1": found.weight_l1,
        }
        return RowBlock(rows, has & (found.used > 0), diagnostics)

    def _stop_if_asked(self) -> None:
        if self._task.transplant.should_stop():
            raise StageInterrupted
