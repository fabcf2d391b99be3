"""Objectives that map one vocabulary onto the other: X-Token, MinED, CDM."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from transformers import AutoTokenizer

from alignment.byte_models import byte_model
from alignment.nearest_tokens import counterparts, nearest_tokens, similar_tokens
from alignment.projection import projection
from alignment.table_cache import Arrays, cached_arrays
from alignment.vocab import AlignmentError, VocabAlignment, align_vocabularies
from losses.cdm import TokenMatches, cdm_loss
from losses.chunks import AlignedRows, aligned_rows, chunk_sums
from losses.mined import mined_loss
from losses.output import LossOutput
from losses.xtoken import ChunkTokens, ProjectionEntries, hybrid_loss, projected_kl_loss
from stages.objectives.projected import CdmOptions, MinEdOptions, XTokenOptions
from stages.stage import StageError
from stages.training.data.batch import Batch, SideBatch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import ModelFacts, Pair
from stages.training.objectives.coverage import with_chunk_coverage

_VERSION = 1
"""Of the tables; raise it when the same vocabularies give others."""


class XToken:
    """Divergence from the teacher to the student's projected distribution, at the start of every chunk."""

    auxiliary = None

    def __init__(self, options: XTokenOptions, pair: Pair) -> None:
        self._options = options
        self._chain_rule = options.chunks == "chain_rule"
        self.teacher_reads = self.student_reads = Reads(label=self._chain_rule)
        tables = _pair_table("xtoken", pair, build_projection)
        self._projection = ProjectionEntries(
            *(torch.from_numpy(tables[name]) for name in ("student", "teacher", "weight"))
        )

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        if self._options.variant == "h_kl" and not teacher.predictions.complete:
            raise StageError(
                "losses.xtoken.variant: h_kl sorts the teacher's whole distribution, but this teacher gives its most "
                "probable tokens only; use `variant: p_kl`, or a teacher that runs here"
            )
        return _number_of(_rows(batch, one_to_one=not self._chain_rule))

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        rows = _rows(batch, one_to_one=not self._chain_rule)
        self._projection = self._projection.to(student.hidden.device)
        loss = projected_kl_loss if self._options.variant == "p_kl" else hybrid_loss
        output = loss(
            teacher.predictions.at(rows.teacher),
            student.head.at(rows.student),
            self._projection,
            self._chunk_tokens(batch, teacher, student, rows),
            top_k=self._options.top_k,
        )
        return with_chunk_coverage(output, batch, rows.chunk)

    def _chunk_tokens(self, batch: Batch, teacher: Signals, student: Signals, rows: AlignedRows) -> ChunkTokens:
        firsts, rests = [], []
        for side, signals, predicting in (
            (batch.teacher, teacher, rows.teacher),
            (batch.student, student, rows.student),
        ):
            firsts.append(side.ids.flatten()[predicting + 1])
            if self._chain_rule:
                rests.append(_rest_of_chunk(side, signals.label_logp, predicting + 1, batch.num_chunks)[rows.chunk])
            else:
                rests.append(torch.zeros(len(predicting), dtype=student.head.dtype, device=predicting.device))
        return ChunkTokens(*firsts, *rests)


class MinEd:
    """Divergence to the student from the teacher's probabilities carried over to the tokens spelled most alike."""

    teacher_reads = student_reads = Reads()
    auxiliary = None

    def __init__(self, options: MinEdOptions, pair: Pair) -> None:
        self._options = options
        self._nearest = torch.from_numpy(_pair_table("mined", pair, build_nearest)["nearest"])

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        return _number_of(_rows(batch, one_to_one=True))

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        rows = _rows(batch, one_to_one=True)
        self._nearest = self._nearest.to(student.hidden.device)
        output = mined_loss(
            teacher.predictions.at(rows.teacher),
            student.head.at(rows.student),
            self._nearest,
            temperature=self._options.temperature,
        )
        return with_chunk_coverage(output, batch, rows.chunk)


class Cdm:
    """Divergence over the top tokens of both models, matched by spelling where both models think of them."""

    teacher_reads = student_reads = Reads()
    auxiliary = None

    def __init__(self, options: CdmOptions, pair: Pair) -> None:
        self._options = options

        def build(tokens: PairTokens) -> Arrays:
            return build_matches(tokens, within=options.max_distance, most=options.candidates)

        tables = _pair_table("cdm", pair, build, options.max_distance, options.candidates)
        self._of_teacher, self._of_student = (
            TokenMatches(torch.from_numpy(tables[f"{side}_counterpart"]), torch.from_numpy(tables[f"{side}_similar"]))
            for side in ("teacher", "student")
        )

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        return _number_of(_rows(batch, one_to_one=self._options.chunks == "one_to_one"))

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        rows = _rows(batch, one_to_one=self._options.chunks == "one_to_one")
        device = student.hidden.device
        self._of_teacher, self._of_student = self._of_teacher.to(device), self._of_student.to(device)
        output = cdm_loss(
            teacher.predictions.at(rows.teacher),
            student.head.at(rows.student),
            self._of_teacher,
            self._of_student,
            top_k=self._options.top_k,
            temperature=self._options.temperature,
        )
        return with_chunk_coverage(output, batch, rows.chunk)


class PairTokens:
    """The two vocabularies made of each other's tokens, computed when a table is built."""

    def __init__(self, pair: Pair) -> None:
        self.teacher, self.student = pair.teacher, pair.student

    @cached_property
    def student_tokens(self) -> VocabAlignment:
        """Each student token made of the teacher's tokens."""
        return _made_of(self.teacher, self.student)

    @cached_property
    def teacher_tokens(self) -> VocabAlignment:
        """Each teacher token made of the student's tokens."""
        return _made_of(self.student, self.teacher)


def build_projection(tokens: PairTokens) -> Arrays:
    """X-Token's matrix."""
    entries = projection(tokens.student_tokens, tokens.teacher_tokens)
    return {"student": entries.student, "teacher": entries.teacher, "weight": entries.weight}


def build_nearest(tokens: PairTokens) -> Arrays:
    """MinED's map."""
    return {"nearest": nearest_tokens(tokens.teacher.view, tokens.student.view, tokens.student_tokens)}


def build_matches(tokens: PairTokens, *, within: float, most: int) -> Arrays:
    """CDM's tables, both ways."""
    teacher, student = tokens.teacher.view, tokens.student.view
    of_student, of_teacher = tokens.student_tokens, tokens.teacher_tokens
    return {
        "teacher_counterpart": counterparts(of_teacher),
        "teacher_similar": similar_tokens(student, teacher, of_teacher, of_student, within=within, most=most),
        "student_counterpart": counterparts(of_student),
        "student_similar": similar_tokens(teacher, student, of_student, of_teacher, within=within, most=most),
    }


def _pair_table(name: str, pair: Pair, build: Callable[[PairTokens], Arrays], *options: object) -> Arrays:
    """The table of one objective, from the cache if it is there; ``options`` are those that enter it.

    Raises:
        StageError: just one of the tokenizers lower-cases its text.
    """
    fingerprint = hashlib.sha256(f"{pair.fingerprint} {options!r}".encode()).hexdigest()
    try:
        return cached_arrays(pair.cache, f"{name}-{_VERSION}", fingerprint, lambda: build(PairTokens(pair)))
    except AlignmentError:
        raise StageError(
            f"losses.{name} matches tokens by their bytes, but just one of the two tokenizers lower-cases its text: "
            "use tokenizers that treat case alike"
        ) from None


def _made_of(source: ModelFacts, target: ModelFacts) -> VocabAlignment:
    model = byte_model(AutoTokenizer.from_pretrained(source.directory), source.view)
    return align_vocabularies(
        source.view, target.view, model=model, source_roles=source.roles, target_roles=target.roles
    )


def _rows(batch: Batch, *, one_to_one: bool) -> AlignedRows:
    """Where both models predict the start of the same chunk."""
    rows = aligned_rows(batch.teacher, batch.student, batch.num_chunks)
    return AlignedRows(*(each[rows.one_to_one] for each in rows)) if one_to_one else rows


def _number_of(rows: AlignedRows) -> Tensor:
    return rows.student.new_tensor([len(rows.student)], dtype=torch.float64)


def _rest_of_chunk(side: SideBatch, label_logp: Tensor, first: Tensor, num_chunks: int) -> Tensor:
    """Log-probability of every chunk's tokens after its first, which ``first`` gives the flat positions of: [B * C]."""
    later = label_logp.flatten().index_fill(0, first, 0.0).view(label_logp.shape)
    return chunk_sums(later, side.chunk, num_chunks).flatten()
