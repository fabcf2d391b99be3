"""Rows that say nothing of the token they are for."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.initializers.rows import RowBlock, SparseRows
from alignment.initializers.simple import (
    Gaussian,
    copied_rows,
    independent_gaussian,
    multivariate_gaussian,
    standard_normals,
    zero_rows,
)
from alignment.special_tokens import special_roles
from alignment.token_index import TokenIndex, UnknownToken
from stages.initialisation.task import Estimate, RowTask
from stages.initializers.simple import CopyOptions, MeanOptions, MvnOptions, NormalOptions, ZeroOptions
from stages.stage import StageError

_DRAWN_AT_ONCE = 1 << 22


class Zero:
    """Zeros for every token."""

    def __init__(self, options: ZeroOptions, task: RowTask) -> None:
        pass

    def estimate(self, new_rows: int) -> Estimate:
        return Estimate(0, 0.0)

    def fit(self) -> None:
        pass

    def rows(self, target_ids: Tensor) -> RowBlock:
        return _for_all(zero_rows(len(target_ids)), target_ids)


class Mean:
    """The mean row for every token."""

    def __init__(self, options: MeanOptions, task: RowTask) -> None:
        self._task = task

    def estimate(self, new_rows: int) -> Estimate:
        return Estimate(0, float(self._task.rows.numel()))

    def fit(self) -> None:
        pass

    def rows(self, target_ids: Tensor) -> RowBlock:
        return _for_all(self._task.mean_row.expand(len(target_ids), -1), target_ids)


class Copy:
    """The row of one old token for every token."""

    def __init__(self, options: CopyOptions, task: RowTask) -> None:
        source = task.transplant.source
        try:
            self._source_id = TokenIndex(source, len(task.rows)).named(
                _default(task) if options.token is None else options.token
            )
        except UnknownToken as error:
            raise StageError(f"copy: {error}") from None

    def estimate(self, new_rows: int) -> Estimate:
        return Estimate(0, 0.0)

    def fit(self) -> None:
        pass

    def rows(self, target_ids: Tensor) -> RowBlock:
        return _for_all(copied_rows(self._source_id, len(target_ids)), target_ids)


class Normal:
    """Draws from the student's rows taken as independent normal dimensions."""

    def __init__(self, options: NormalOptions, task: RowTask) -> None:
        self._task = task

    def estimate(self, new_rows: int) -> Estimate:
        width = self._task.rows.shape[1]
        return Estimate(24 * max(_DRAWN_AT_ONCE, width), 3.0 * self._task.rows.numel() + 2.0 * new_rows * width)

    def fit(self) -> None:
        self._gaussian = independent_gaussian(self._task.rows)

    def rows(self, target_ids: Tensor) -> RowBlock:
        return _for_all(_drawn(self._gaussian, self._task, target_ids), target_ids)


class Mvn:
    """Draws from the student's rows taken as one multivariate normal distribution."""

    def __init__(self, options: MvnOptions, task: RowTask) -> None:
        self._options = options
        self._task = task

    def estimate(self, new_rows: int) -> Estimate:
        width = self._task.rows.shape[1]
        operations = (2.0 * len(self._task.rows) + 2.0 * new_rows + width / 3) * width**2
        return Estimate(16 * width**2 + 24 * max(_DRAWN_AT_ONCE, width), operations)

    def fit(self) -> None:
        self._gaussian = multivariate_gaussian(
            self._task.rows, covariance_scale=self._options.covariance_scale, ridge=self._options.ridge
        )

    def rows(self, target_ids: Tensor) -> RowBlock:
        return _for_all(_drawn(self._gaussian, self._task, target_ids), target_ids)


def _for_all(rows: SparseRows | Tensor, target_ids: Tensor) -> RowBlock:
    return RowBlock(rows, torch.ones(len(target_ids), dtype=torch.bool))


def _drawn(gaussian: Gaussian, task: RowTask, target_ids: Tensor) -> Tensor:
    width = task.rows.shape[1]
    keys, seed = task.transplant.row_keys, task.transplant.seed
    blocks = target_ids.split(max(1, _DRAWN_AT_ONCE // width))
    rows = [
        gaussian.rows(standard_normals(keys[ids.numpy()], seed=seed, name=task.name, width=width)) for ids in blocks
    ]
    return torch.cat(rows)


def _default(task: RowTask) -> int:
    """The student's token for unknown text, or for the end of a text.

    Raises:
        StageError: it has neither.
    """
    from transformers import AutoTokenizer

    roles = special_roles(AutoTokenizer.from_pretrained(task.transplant.student))
    found = roles.get("unk", roles.get("eos"))
    if found is None:
        raise StageError(
            "copy: the student's tokenizer has no token for unknown text or the end of a text: name a token"
        )
    return found
