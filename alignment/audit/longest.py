"""The few largest spans of a stream of batches, each text once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment.audit.batch import BatchChunks
from alignment.audit.measurements import LongSpan

KEPT_SPANS = 5
_EXCERPT_BYTES = 120


@dataclass(frozen=True)
class Spans:
    """Spans of one batch.

    Attributes:
        starts, ends: int64 [R], their bytes in the batch.
        teacher_tokens, student_tokens, chunks: int64 [R], what they hold.
        document: int64 [R], the batch's document that they are in.
    """

    starts: np.ndarray
    ends: np.ndarray
    teacher_tokens: np.ndarray
    student_tokens: np.ndarray
    chunks: np.ndarray
    document: np.ndarray


def chunk_spans(chunks: BatchChunks) -> Spans:
    """Every chunk as a span."""
    one = np.ones(len(chunks.starts), dtype=np.int64)
    return Spans(chunks.starts, chunks.ends, chunks.teacher_tokens, chunks.student_tokens, one, chunks.document)


def group_spans(chunks: BatchChunks, fused: np.ndarray) -> Spans:
    """The groups that the gamma rule makes of the chunks, given bool [C]: joined to the next chunk of the document."""
    continues = fused[:-1] & (chunks.document[1:] == chunks.document[:-1])
    first = np.flatnonzero(np.concatenate([[True], ~continues])[: len(fused)])
    if not len(first):
        return chunk_spans(chunks)
    last = np.append(first[1:], len(fused)) - 1
    return Spans(
        starts=chunks.starts[first],
        ends=chunks.ends[last],
        teacher_tokens=np.add.reduceat(chunks.teacher_tokens, first),
        student_tokens=np.add.reduceat(chunks.student_tokens, first),
        chunks=last - first + 1,
        document=chunks.document[first],
    )


class LongestSpans:
    """Keeps the largest spans seen, the earlier one of two equally large, and of equal texts the first.

    What is kept does not depend on how the documents were cut into batches.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[int, bytes, LongSpan]] = []

    @property
    def spans(self) -> tuple[LongSpan, ...]:
        """The spans kept, largest first."""
        return tuple(span for _, _, span in self._kept)

    def offer(
        self,
        spans: Spans,
        sizes: np.ndarray,
        text: np.ndarray,
        *,
        domain: str,
        document_starts: np.ndarray,
        first_document: int,
    ) -> None:
        """Keep the largest of a batch's spans, too.

        Args:
            spans: R spans.
            sizes: int64 [R], what to compare; spans of size 0 are never kept.
            text: uint8 [N], the batch.
            domain: where it is from.
            document_starts: int64 [D + 1], where each document starts in it.
            first_document: the number of its first document in the domain.
        """
        for index in self._candidates(sizes).tolist():
            size, start, end = int(sizes[index]), int(spans.starts[index]), int(spans.ends[index])
            if size <= self._smallest():
                return
            content = text[start:end].tobytes()
            if any(content == kept for _, kept, _ in self._kept):
                continue
            document = int(spans.document[index])
            span = LongSpan(
                domain=domain,
                document=first_document + document,
                start=start - int(document_starts[document]),
                bytes=end - start,
                teacher_tokens=int(spans.teacher_tokens[index]),
                student_tokens=int(spans.student_tokens[index]),
                chunks=int(spans.chunks[index]),
                text=excerpt(content),
            )
            self._kept = sorted([*self._kept, (size, content, span)], key=lambda entry: -entry[0])[:KEPT_SPANS]

    def _smallest(self) -> int:
        """What a span must exceed to be kept."""
        return self._kept[-1][0] if len(self._kept) == KEPT_SPANS else 0

    def _candidates(self, sizes: np.ndarray) -> np.ndarray:
        """Spans that may be kept, largest first and then in order."""
        candidates = np.flatnonzero(sizes > self._smallest())
        return candidates[np.argsort(-sizes[candidates], kind="stable")]


def excerpt(content: bytes) -> str:
    """The beginning of some bytes in print: undecodable ones escaped, cut between two characters."""
    if len(content) <= _EXCERPT_BYTES:
        return content.decode(errors="backslashreplace")
    cut = _EXCERPT_BYTES
    while cut and content[cut] & 0xC0 == 0x80:
        cut -= 1
    return content[: cut or _EXCERPT_BYTES].decode(errors="backslashreplace") + "…"
