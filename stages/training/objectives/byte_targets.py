"""Objectives whose targets are exact in bytes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from alignment.common_vocabulary import stop_ids
from alignment.prefix_table import cached_prefix_table
from losses.bpm import bpm_loss, rows_with_target
from losses.byte_rows import ByteRows, TeacherLine, byte_rows
from losses.escd import escd_loss, root_rows
from losses.output import LossOutput
from losses.prefix_tables import PrefixTables
from stages.objectives.byte_targets import BpmOptions, EscdOptions
from stages.training.data.batch import Batch, SideBatch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import ModelFacts, Pair


class Bpm:
    """Byte-prefix marginalisation; a unit is a student token with a target."""

    teacher_reads = student_reads = Reads()
    auxiliary = None

    def __init__(self, options: BpmOptions, pair: Pair) -> None:
        self._options = options
        self._pair = _PairTables(pair)

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        rows, _, tables = self._pair.locate(batch)
        kept = rows_with_target(rows, tables, whitespace_rows=self._options.whitespace_rows)
        return kept.sum(dtype=torch.float64).view(1)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        rows, line, tables = self._pair.locate(batch)
        return bpm_loss(
            teacher.predictions,
            student.head,
            rows,
            line,
            tables,
            scored=batch.student.scored,
            whitespace_rows=self._options.whitespace_rows,
        )


class Escd:
    """Event-set completion; a unit is a student token that begins where a teacher's token begins."""

    teacher_reads = student_reads = Reads()
    auxiliary = None

    def __init__(self, options: EscdOptions, pair: Pair) -> None:
        self._options = options
        self._pair = _PairTables(pair)

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        rows, _, tables = self._pair.locate(batch)
        kept = root_rows(rows, tables, whitespace_rows=self._options.whitespace_rows)
        return kept.sum(dtype=torch.float64).view(1)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        rows, _, tables = self._pair.locate(batch)
        return escd_loss(
            teacher.predictions,
            student.head,
            rows,
            tables,
            scored=batch.student.scored,
            child_weight=self._options.child_weight,
            min_mass=self._options.min_mass,
            whitespace_rows=self._options.whitespace_rows,
        )


class _PairTables:
    """The tables of a pair of vocabularies, and where a batch's tokens lie in each other."""

    def __init__(self, pair: Pair) -> None:
        self._tables = prefix_tables(pair)

    def locate(self, batch: Batch) -> tuple[ByteRows, TeacherLine, PrefixTables]:
        tables = self._tables = self._tables.to(batch.student.ids.device)
        rows, line = byte_rows(
            _in_vocabulary_bytes(batch.teacher, tables.teacher_length),
            _in_vocabulary_bytes(batch.student, tables.student_length),
            batch.num_chunks,
        )
        return rows, line, tables


def prefix_tables(pair: Pair) -> PrefixTables:
    """The tables of a pair, from its cache if they were built before."""
    arrays = cached_prefix_table(pair.teacher.view, pair.student.view, pair.cache)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return PrefixTables(
        **{name: tensor if tensor.dtype == torch.bool else tensor.long() for name, tensor in tensors.items()},
        teacher_stop=_stops(pair.teacher),
        student_stop=_stops(pair.student),
    )


def _stops(model: ModelFacts) -> Tensor:
    return torch.from_numpy(stop_ids(model.view, model.roles))


def _in_vocabulary_bytes(side: SideBatch, lengths: Tensor) -> SideBatch:
    """The side with each token's length in the vocabulary: a space that it puts before a text is a byte, too."""
    return replace(side, lengths=lengths[side.ids])
