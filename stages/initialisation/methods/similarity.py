"""Rows made of the rows of tokens that are similar in a donor's matrix: CLP and CLP+ (embedding_init.md §1.7)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from alignment.initializers.rows import RowBlock
from alignment.initializers.similarity import (
    Candidates,
    ProportionalRows,
    Select,
    SparsemaxSupport,
    Weigh,
    similar_rows,
    sparsemax,
)
from stages.initialisation.task import Estimate, RowTask
from stages.initializers.similarity import ClpOptions, ClpPlusOptions
from stages.references import ReferenceProblem, parse
from stages.stage import StageError, stage_error

NEAREST_SUPPORT = SparsemaxSupport(limit=1024)
"""On vectors that tell tokens apart sparsemax uses a hundred; the limit bounds what others would take."""

_COMPARISON_BYTES = 1 << 29


class ClpPlus:
    """Sparsemax of the cosines to all anchors in the donor's matrix of the same role."""

    def __init__(self, options: ClpPlusOptions, task: RowTask) -> None:
        _check_donor(options.method, task)
        self._task = task

    def estimate(self, new_rows: int) -> Estimate:
        anchors = len(self._task.anchor_source)
        return comparison_cost(new_rows, anchors, _donor_width(self._task))

    def fit(self) -> None:
        task = self._task
        self._candidates = Candidates.from_vectors(task.anchor_source, _donor_vectors(task, task.anchor_target))

    def rows(self, target_ids: Tensor) -> RowBlock:
        queries = _donor_vectors(self._task, target_ids)
        return similar_block(queries, self._candidates, NEAREST_SUPPORT, sparsemax)


class Clp:
    """All anchors in proportion to their cosines in the donor's matrix of the same role.

    Diagnostics:
        mean_cosine: to the anchors. Where it is not positive the weights would have the wrong signs, and no row is
            made; where it is small the row may be far longer than any other.
    """

    def __init__(self, options: ClpOptions, task: RowTask) -> None:
        _check_donor(options.method, task)
        self._task = task

    def estimate(self, new_rows: int) -> Estimate:
        task = self._task
        anchors, dimensions = len(task.anchor_source), _donor_width(task)
        memory = 4 * anchors * dimensions + 8 * dimensions * task.rows.shape[1]
        return Estimate(memory, 2.0 * (anchors + new_rows) * dimensions * task.rows.shape[1])

    def fit(self) -> None:
        task = self._task
        candidates = Candidates.from_vectors(task.anchor_source, _donor_vectors(task, task.anchor_target))
        self._proportional = ProportionalRows.fit(candidates, task.rows)

    def rows(self, target_ids: Tensor) -> RowBlock:
        queries = _donor_vectors(self._task, target_ids)
        rows, mean_cosine = self._proportional.rows(queries)
        return RowBlock(rows, mean_cosine > 0, {"mean_cosine": mean_cosine})


def similar_block(queries: Tensor, candidates: Candidates, select: Select, weigh: Weigh) -> RowBlock:
    """Weights over similar tokens; a target whose query is zero is not made.

    Diagnostics:
        tokens_used: how many old rows a row is made of. Thousands mean that the vectors do not tell tokens apart.
    """
    rows = similar_rows(queries, candidates, select, weigh)
    used = (rows.indices >= 0).sum(dim=1)
    return RowBlock(rows, used > 0, {"tokens_used": used.float()})


def comparison_cost(new_rows: int, candidates: int, dimensions: int) -> Estimate:
    """What it costs to compare every new token with every candidate, a block of them at a time."""
    return Estimate(_COMPARISON_BYTES + 4 * candidates * dimensions, 2.0 * new_rows * candidates * dimensions)


def located(reference: str) -> Path:
    """The file that an option names.

    Raises:
        StageError: there is none.
    """
    try:
        path = parse(reference, Path.cwd()).locate()
    except ReferenceProblem as error:
        raise stage_error(error) from None
    if not path.is_file():
        raise StageError(f"{path}: a directory, expected a file")
    return path


def check_anchors(method: str, task: RowTask) -> None:
    """Raise StageError where there are no tokens to make rows of."""
    if not len(task.anchor_source):
        raise StageError(
            f"{method} makes rows of those of shared tokens, and {task.name} has none that may be used: loosen "
            "'anchors', or use piece_mean"
        )


def _check_donor(method: str, task: RowTask) -> None:
    if task.donor_rows is None:
        raise StageError(
            f"{method} finds similar tokens in a model that already uses the target tokenizer, and there is none for "
            f"{task.name}: name one as models.donor, or use focus, which needs text alone"
        )
    check_anchors(method, task)


def _donor_width(task: RowTask) -> int:
    assert task.donor_rows is not None
    return task.donor_rows.shape[1]


def _donor_vectors(task: RowTask, target_ids: Tensor) -> Tensor:
    """The donor's rows of some target ids, [M, A]; zero where it has none that is of use."""
    assert task.donor_rows is not None
    assert task.donor_has is not None
    usable = task.donor_has[target_ids]
    vectors = torch.zeros(len(target_ids), task.donor_rows.shape[1], dtype=task.donor_rows.dtype)
    vectors[usable] = task.donor_rows[target_ids[usable]]
    return vectors
