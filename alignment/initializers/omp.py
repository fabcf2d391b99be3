"""Orthogonal matching pursuit: new tokens as sparse combinations of shared ones, found in a donor's space.

A donor uses the target tokenizer. A new token's donor row y is approximated by k of the donor's rows a_i of tokens that
student and donor share; the student's new row is the same combination of the student's rows of these tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignment.initializers.exact_atoms import ExactAtoms
from alignment.initializers.gram_columns import TILE, GramColumns, tile_count
from alignment.initializers.pursuit import Batch, PursuitOptions
from alignment.initializers.rows import SparseRows

Selection = Literal["raw", "cosine"]
GIB = 2**30
MAX_BATCH = 8192
"""Targets at a time. Many share each Gram column while it is in the processor's cache."""
WORK_BYTES = 96 * 2**20
"""For what is done in parts of fixed size."""


@dataclass(frozen=True)
class OmpResult:
    """M targets as combinations of at most k atoms.

    Attributes:
        rows: indices [M, k] are atoms in the order in which they were picked, -1 beyond the last; weights float32.
        relative_residual: float32 [M], ||y - sum_i c_i a_i|| / ||y||; 0 for a zero target, which gets no atoms.
        used: int64 [M], atoms of each.
        weight_l1: float32 [M], sum_i |c_i|.
    """

    rows: SparseRows
    relative_residual: Tensor
    used: Tensor
    weight_l1: Tensor


def omp(
    anchors: Tensor,
    targets: Tensor,
    k: int,
    *,
    select: Selection = "raw",
    ridge: float = 0.0,
    stop_tol: float = 1e-6,
    memory_budget: int = 4 * GIB,
) -> OmpResult:
    """Approximate ``targets`` [M, D] by at most ``k`` of ``anchors`` [N, D]; see ``OrthogonalMatchingPursuit``."""
    solver = OrthogonalMatchingPursuit(
        anchors, k, select=select, ridge=ridge, stop_tol=stop_tol, memory_budget=memory_budget
    )
    return solver.solve(targets)


class OrthogonalMatchingPursuit:
    """Greedy sparse approximation: the picks of float64, mostly at the price of float16.

    Starting from r = y, each step picks the atom with the greatest |<a_i, r>| and solves for the coefficients of all
    atoms picked so far anew; r is what they leave of y. Scores that are equal when rounded to float32 go to the lowest
    index. A target stops early when ||r|| <= stop_tol ||y||, or when less than a thousandth of the norm of the atom to
    pick next is new to the span of those picked: then nothing is left that atoms could explain. So no coefficient
    explodes and no duplicate of an atom is picked.

    Goddard & Fernandes Neto, arXiv 2506.06607; specs/embedding_init.md §1.3 and §5.1. The released code (mergekit)
    takes k atoms always, also beyond the rank, where coefficients explode, and decides in float32.

    Args:
        anchors: the atoms, [N, D] of any floating-point type; finite, no zero rows.
        k: most atoms of a target, 1 to N. More than D add nothing: min(k, D) are picked.
        select: ``cosine`` picks by |<a_i, r>| / ||a_i||, so that long rows are not favoured.
        ridge: added to the diagonal of the picked atoms' Gram matrix when the weights are solved for, after the picks.
        stop_tol: relative residual at which a target has enough atoms.
        memory_budget: bytes to allocate at most beyond anchors, targets and result. Speed depends on it; the result
            does not.

    Raises:
        ValueError: k is out of range, an anchor unusable, or the budget too small for a single target.
    """

    def __init__(
        self,
        anchors: Tensor,
        k: int,
        *,
        select: Selection = "raw",
        ridge: float = 0.0,
        stop_tol: float = 1e-6,
        memory_budget: int = 4 * GIB,
    ) -> None:
        anchors = anchors.detach()
        count, width = anchors.shape
        if not 1 <= k <= count:
            raise ValueError(f"k is {k}, but there are {count} anchors: choose a k from 1 to {count}")
        self._exact = ExactAtoms(anchors, cosine=select == "cosine")
        norms = self._exact.norms
        if not bool(((norms > 0) & norms.isfinite()).all()):
            raise ValueError("anchors hold zero rows or rows that are not finite: leave these out")
        memory = memory_plan(count, width, min(k, width), memory_budget)
        self._k = k
        self._options = PursuitOptions(min(k, width), stop_tol, ridge)
        self._batch = memory.batch
        scales = norms if select == "cosine" else norms.max().expand_as(norms)
        self._columns = GramColumns(anchors, scales, memory.columns, memory.batch)

    def solve(self, targets: Tensor, poll: Callable[[], None] = lambda: None) -> OmpResult:
        """The approximations of ``targets`` [M, D]; Gram columns made for them serve later calls.

        Args:
            targets: any floating-point type, finite.
            poll: called once a step, every few seconds; what it raises ends the work.
        """
        targets = targets.detach()
        count = len(targets)
        indices = torch.full((count, self._k), -1, device=targets.device)
        weights = torch.zeros(count, self._k, device=targets.device)
        residuals = torch.zeros(count, device=targets.device)
        todo = (targets != 0).any(dim=1).nonzero().squeeze(1)
        while len(todo):
            batch = self._pursue(targets[todo[: self._batch]], poll)
            rows, further = todo[: self._batch], todo[self._batch :]
            used = batch.indices.shape[1]
            indices[rows, :used], weights[rows, :used] = batch.indices, batch.weights.float()
            residuals[rows] = batch.residuals.float()
            todo = torch.cat([rows[batch.deferred], further])
            self._batch = len(rows) - len(batch.deferred) if len(batch.deferred) else self._batch
        return OmpResult(SparseRows(indices, weights), residuals, (indices >= 0).sum(dim=1), weights.abs().sum(dim=1))

    def _pursue(self, targets: Tensor, poll: Callable[[], None]) -> Batch:
        batch = Batch(self._exact, self._columns, targets, self._options)
        while not batch.finished:
            poll()
            batch.step()
        return batch


@dataclass(frozen=True)
class MemoryPlan:
    """How a budget is shared out.

    Attributes:
        columns: Gram columns to keep.
        batch: targets at a time.
        total_bytes: all that will be allocated.
    """

    columns: int
    batch: int
    total_bytes: int


def memory_plan(count: int, width: int, k: int, budget: int) -> MemoryPlan:
    """How ``budget`` bytes are shared out between Gram columns and targets, for ``count`` atoms of ``width`` numbers.

    A quarter at most goes to the targets at hand, since many targets make the most of a column; the rest to columns.

    Raises:
        ValueError: it does not suffice for one target.
    """
    tiles = tile_count(count)
    # Of each column: two bytes an atom, and a place in the copy of a tile.
    column_bytes = 2 * TILE * (tiles + 1)
    atom_bytes = 4 * width + 32
    # Of each target: its own column, its scores, its basis (twice while others leave) and vectors of its width.
    target_bytes = 2 * column_bytes + 16 * tiles + 16 * k * k + 40 * width + 128 * k
    fixed = tiles * TILE * atom_bytes + WORK_BYTES
    free = budget - fixed
    if free < target_bytes + k * column_bytes:
        least = fixed + target_bytes + k * column_bytes
        raise ValueError(
            f"{count} anchors of width {width} with k={k} need at least {least / GIB:.2f} GiB, but the memory budget "
            f"is {budget / GIB:.2f} GiB: raise it or lower k"
        )
    batch = max(1, min(MAX_BATCH, free // 4 // target_bytes, (free - k * column_bytes) // target_bytes))
    columns = min(count, (free - batch * target_bytes) // column_bytes)
    return MemoryPlan(columns, batch, fixed + batch * target_bytes + columns * column_bytes)
