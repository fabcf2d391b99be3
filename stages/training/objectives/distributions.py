"""Objectives that compare next-token distributions over one set of tokens, where both models predict the same text."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from alignment.byte_view import ByteView
from losses.chunks import AlignedRows, aligned_rows
from losses.output import LossOutput
from losses.same_vocab import row_divergence, same_vocabulary_loss
from losses.strict import strict_loss
from stages.objectives.distributions import SameVocabularyOptions, StrictOptions
from stages.stage import StageError
from stages.training.data.batch import Batch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import Pair
from stages.training.objectives.coverage import with_chunk_coverage


class SameVocabulary:
    """Divergence of two models with one vocabulary at every scored token."""

    teacher_reads = student_reads = Reads()
    auxiliary = None

    def __init__(self, options: SameVocabularyOptions, pair: Pair) -> None:
        _check_one_vocabulary(pair.teacher.view, pair.student.view)
        self._loss = partial(
            same_vocabulary_loss,
            divergence=row_divergence(options.divergence, beta=options.beta, alpha=options.alpha),
            temperature=options.temperature,
            scale_by_temperature=options.scale_by_temperature,
        )

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        return _count(_one_to_one(batch))

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        rows = _one_to_one(batch)
        output = self._loss(teacher.predictions.at(rows.teacher), student.head.at(rows.student))
        return with_chunk_coverage(output, batch, rows.chunk)


class Strict:
    """Divergence on the shared vocabulary at the chunks that are one token on either side."""

    teacher_reads = student_reads = Reads()
    auxiliary = None

    def __init__(self, options: StrictOptions, pair: Pair) -> None:
        shared = pair.shared_tokens()
        if len(shared.student) < 2:
            raise StageError(
                "strict compares distributions on the tokens that both vocabularies have, of which there are "
                f"{len(shared.student)}; alm needs none"
            )
        self._shared = torch.from_numpy(shared.teacher), torch.from_numpy(shared.student)
        self._loss = partial(
            strict_loss,
            divergence=row_divergence(options.divergence, beta=options.beta, alpha=options.alpha),
            temperature=options.temperature,
            top_k=options.top_k,
        )

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        return _count(_one_to_one(batch))

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        rows = _one_to_one(batch)
        shared = (ids.to(student.head.hidden.device) for ids in self._shared)
        output = self._loss(teacher.predictions.at(rows.teacher), student.head.at(rows.student), *shared)
        return with_chunk_coverage(output, batch, rows.chunk)


def _one_to_one(batch: Batch) -> AlignedRows:
    """The rows of chunks that are one token on either side."""
    rows = aligned_rows(batch.teacher, batch.student, batch.num_chunks)
    return AlignedRows(*(part[rows.one_to_one] for part in rows))


def _count(rows: AlignedRows) -> Tensor:
    return torch.tensor([len(rows.student)], dtype=torch.float64, device=rows.student.device)


def _check_one_vocabulary(teacher: ByteView, student: ByteView) -> None:
    if teacher.fingerprint == student.fingerprint:
        return
    size = min(teacher.vocab_size, student.vocab_size)
    differing = [token for token in range(size) if _meaning(teacher, token) != _meaning(student, token)]
    if not differing and teacher.vocab_size == student.vocab_size:
        return
    reason = f"the teacher has {teacher.vocab_size:,} tokens, the student {student.vocab_size:,}"
    if differing:
        meanings = (_meaning(view, differing[0]) for view in (teacher, student))
        reason = "token {} is {!r} for the teacher and {!r} for the student".format(differing[0], *meanings)
    raise StageError(
        f"same_vocabulary compares the models id by id, but their vocabularies differ: {reason}. strict compares the "
        "tokens that both have; alm works on any pair"
    )


def _meaning(view: ByteView, token: int) -> bytes | str | None:
    """The token's bytes, a special token's string, or None for an id without a token."""
    return view.special_tokens.get(token, view.token_bytes(token))
