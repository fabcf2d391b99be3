"""Objectives that compare distributions by rank, without knowing which token is which."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.multilevel_ot import multilevel_ot_loss
from losses.output import LossOutput
from losses.position_pairs import PositionPairs, aligned_positions, paired_positions
from losses.uld import uld_loss
from stages.objectives.sorted_distributions import MultiLevelOtOptions, Positions, UldOptions
from stages.training.data.batch import Batch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import Pair
from stages.training.objectives.coverage import with_unit_coverage


class Uld:
    """Universal logit distillation."""

    teacher_reads = student_reads = Reads()
    auxiliary = None

    def __init__(self, options: UldOptions, pair: Pair) -> None:
        self._options = options

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        return _num_pairs(batch, self._options.positions)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        pairs = _pairs(batch, self._options.positions)
        output = uld_loss(
            teacher.predictions.at(pairs.teacher), student.head.at(pairs.student), top_k=self._options.top_k
        )
        return with_unit_coverage(output, batch)


class MultiLevelOt:
    """Multi-level optimal transport between the distributions of a sequence."""

    teacher_reads = student_reads = Reads()
    auxiliary = None

    def __init__(self, options: MultiLevelOtOptions, pair: Pair) -> None:
        self._options = options

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        return _num_pairs(batch, self._options.positions)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        pairs = _pairs(batch, self._options.positions)
        output = multilevel_ot_loss(
            teacher.predictions.at(pairs.teacher),
            student.head.at(pairs.student),
            pairs.sequence,
            batch.student.num_windows,
            k=self._options.k,
            log_weight=self._options.log_weight,
            sinkhorn_weight=self._options.sinkhorn_weight,
            regularization=self._options.regularization,
            iterations=self._options.iterations,
        )
        return with_unit_coverage(output, batch)


def _pairs(batch: Batch, positions: Positions) -> PositionPairs:
    if positions == "paired":
        return paired_positions(batch.teacher, batch.student)
    return aligned_positions(batch.teacher, batch.student, batch.num_chunks)


def _num_pairs(batch: Batch, positions: Positions) -> Tensor:
    return torch.tensor([len(_pairs(batch, positions).student)], dtype=torch.float64, device=batch.student.ids.device)
