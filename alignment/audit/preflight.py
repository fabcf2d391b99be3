"""The audit of a tokenizer pair on a stream of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from alignment.audit.batch import BatchChunks, flatten
from alignment.audit.cost import Workload, estimate_cost
from alignment.audit.counts import Statistic, count_cells, fused_chunks
from alignment.audit.longest import LongestSpans, chunk_spans, group_spans
from alignment.audit.measurements import (
    BoundaryFacts,
    ChunkFacts,
    ContextFacts,
    DigitFacts,
    Measurements,
)
from alignment.audit.recommend import recommend
from alignment.audit.report import AuditReport
from alignment.audit.slices import class_slices, domain_slices, overall_slice, prose_and_code, script_slices
from alignment.audit.text_classes import CLASSES, NUMERALS, ClassifiedText, classify
from alignment.audit.text_slice import TextSlice
from alignment.audit.unusable import UnusableText
from alignment.audit.vocabulary import SideCounts, share, suppression, tokenizer_facts, vocabulary_facts
from alignment.byte_view import ByteView
from alignment.digit_verdict import digit_verdict
from alignment.spans import align_batch

CONTEXT_LENGTHS = (512, 1024, 2048, 4096, 8192)
SHAPES = ("1:1", "1:n", "n:1", "n:m")

_BATCH_CHARACTERS, _BATCH_DOCUMENTS = 1 << 20, 1 << 14


class Audit:
    """What two tokenizers do to a text, counted batch by batch; memory does not grow with the text.

    Every number of the report is a function of the documents, their domains and their weights; how they were
    distributed over calls of ``add`` makes no difference.
    """

    def __init__(self, teacher: ByteView, student: ByteView) -> None:
        self._sides = (SideCounts.empty(teacher, student), SideCounts.empty(student, teacher))
        self._boundary_mask = teacher.boundary_mask()
        self._cells: dict[str, np.ndarray] = {}
        self._documents: dict[str, int] = {}
        self._text_bytes = 0
        self._shapes = np.zeros(len(SHAPES))
        self._longest_chunks, self._longest_groups = LongestSpans(), LongestSpans()
        self._unusable = UnusableText()

    def add(self, domain: str, weight: float, texts: Iterable[str]) -> None:
        """Count some documents of a domain; ``weight`` is how often each is read in an epoch.

        Raises:
            ValueError: the weight is not positive, or a text has a lone surrogate.
        """
        if not weight > 0:
            raise ValueError(f"domain {domain!r}: the weight must be positive, got {weight}")
        for batch in _batches(texts):
            self._add_batch(domain, weight, batch)

    def report(self, workload: Workload | None = None) -> AuditReport:
        """Everything found so far, with an estimate of the cost if ``workload`` describes the training."""
        teacher, student = (side.view for side in self._sides)
        cells = sum(self._cells.values(), np.zeros((2, len(CLASSES), len(Statistic))))
        overall = overall_slice(cells)
        measurements = Measurements(
            teacher=tokenizer_facts(teacher),
            student=tokenizer_facts(student),
            documents=sum(self._documents.values()),
            text_bytes=self._text_bytes,
            overall=overall,
            domains=domain_slices(self._cells),
            classes=class_slices(cells),
            scripts=script_slices(cells),
            prose_and_code=prose_and_code(cells),
            chunks=self._chunk_facts(overall),
            vocabulary=vocabulary_facts(*self._sides),
            digits=_digit_facts(teacher, student, cells),
            suppression=suppression(*self._sides),
            boundaries=self._boundary_facts(overall),
            contexts=_contexts(overall),
            rejections=self._unusable.report(overall),
        )
        return AuditReport(
            **vars(measurements),
            recommendation=recommend(measurements),
            cost=None if workload is None else estimate_cost(workload, overall),
        )

    def _add_batch(self, domain: str, weight: float, texts: list[str]) -> None:
        classified = classify(texts)
        encodings = [side.view.encode_batch(texts, exact=False) for side in self._sides]
        teacher, student, chunks = flatten(*encodings, align_batch(*encodings), classified.starts)
        fused = fused_chunks(teacher, chunks, self._boundary_mask)
        cells = count_cells(
            classified,
            teacher,
            student,
            chunks,
            teacher_common=self._sides[0].common,
            student_common=self._sides[1].common,
            fused=fused,
        )
        self._cells[domain] = self._cells.get(domain, 0) + weight * cells
        for side, tokens in zip(self._sides, (teacher, student), strict=True):
            side.counts[:] += weight * np.bincount(tokens.ids, minlength=len(side.counts))
        self._count_shapes(chunks, weight)
        first_document = self._documents.get(domain, 0)
        self._keep_longest(domain, first_document, classified, chunks, fused)
        self._unusable.add(
            classified, (teacher, student), chunks, domain=domain, weight=weight, first_document=first_document
        )
        self._documents[domain] = first_document + len(texts)
        self._text_bytes += len(classified.text)

    def _count_shapes(self, chunks: BatchChunks, weight: float) -> None:
        shape = 2 * (chunks.teacher_tokens > 1) + (chunks.student_tokens > 1)
        self._shapes += weight * np.bincount(shape, minlength=len(SHAPES))

    def _keep_longest(
        self, domain: str, first_document: int, classified: ClassifiedText, chunks: BatchChunks, fused: np.ndarray
    ) -> None:
        """Chunks by their tokens on the side that has more of them, groups of the gamma rule by their bytes."""
        spans, groups = chunk_spans(chunks), group_spans(chunks, fused)
        tokens = np.where(chunks.one_to_one, 0, np.maximum(chunks.teacher_tokens, chunks.student_tokens))
        group_bytes = np.where(groups.chunks > 1, groups.ends - groups.starts, 0)
        for longest, found, sizes in (
            (self._longest_chunks, spans, tokens),
            (self._longest_groups, groups, group_bytes),
        ):
            longest.offer(
                found,
                sizes,
                classified.text,
                domain=domain,
                document_starts=classified.starts,
                first_document=first_document,
            )

    def _chunk_facts(self, overall: TextSlice) -> ChunkFacts:
        total = float(self._shapes.sum())
        return ChunkFacts(
            chunks=total,
            bytes_per_chunk=share(overall.bytes * (overall.coverage or 0.0), total),
            per_teacher_token=share(total, overall.teacher_tokens),
            per_student_token=share(total, overall.student_tokens),
            shapes={shape: float(count / total) for shape, count in zip(SHAPES, self._shapes, strict=True) if total},
            longest=self._longest_chunks.spans,
        )

    def _boundary_facts(self, overall: TextSlice) -> BoundaryFacts:
        ends = None if overall.fused is None else overall.chunks * (1 - overall.fused)
        return BoundaryFacts(
            fused=overall.fused,
            chunks_per_group=None if ends is None else share(overall.chunks, ends),
            longest_groups=self._longest_groups.spans,
        )


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Consecutive texts in lists of about ``_BATCH_CHARACTERS``."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _contexts(overall: TextSlice) -> tuple[ContextFacts, ...]:
    teacher = share(overall.bytes, overall.teacher_tokens)
    student = share(overall.bytes, overall.student_tokens)
    return tuple(
        ContextFacts(
            tokens, None if teacher is None else tokens * teacher, None if student is None else tokens * student
        )
        for tokens in CONTEXT_LENGTHS
    )


def _digit_facts(teacher: ByteView, student: ByteView, cells: np.ndarray) -> DigitFacts:
    """The two schemes, with the numerals' share of the text in ``cells`` [2, K, S]."""
    by_class = cells[..., Statistic.BYTES].sum(axis=0)
    numerals = by_class[: len(NUMERALS) + 1].sum()
    schemes = (teacher.digit_scheme, student.digit_scheme)
    found = digit_verdict(*schemes, names=("teacher", "student"))
    return DigitFacts(
        *schemes,
        verdict=found.verdict,
        share_of_bytes=share(numerals, by_class.sum()),
        sentence=f"{found.sentence[0].upper()}{found.sentence[1:]}.",
    )
