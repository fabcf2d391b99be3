"""Additive counts of a batch, by class of text and by prose and code: everything else in the audit is a sum of them.

Legend: K classes, S statistics, N bytes, C chunks.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from alignment.audit.batch import BatchChunks, SideTokens
from alignment.audit.text_classes import CLASSES, ClassifiedText

CELLS = 2 * len(CLASSES)
"""Classes of prose, then classes of code."""

_CONTINUATION_MASK, _CONTINUATION = 0xC0, 0x80  # UTF-8 continuation bytes are 0b10xxxxxx


class Statistic(IntEnum):
    """What is counted in each cell. Tokens count by their share of bytes, chunks where their last byte is."""

    BYTES = 0
    COVERED_BYTES = 1
    ONE_TO_ONE_BYTES = 2
    TEACHER_TOKENS = 3
    TEACHER_COVERED = 4
    TEACHER_COMMON = 5
    STUDENT_TOKENS = 6
    STUDENT_COVERED = 7
    STUDENT_COMMON = 8
    CHUNKS = 9
    ONE_TO_ONE_CHUNKS = 10
    FUSED = 11
    INSIDE_WORD = 12
    INSIDE_CHARACTER = 13


def count_cells(
    text: ClassifiedText,
    teacher: SideTokens,
    student: SideTokens,
    chunks: BatchChunks,
    *,
    teacher_common: np.ndarray,
    student_common: np.ndarray,
    fused: np.ndarray,
) -> np.ndarray:
    """Count a batch: float64 [2, K, S], prose first.

    Args:
        text, teacher, student, chunks: the batch.
        teacher_common: bool [V], teacher ids with an exact counterpart among the student's tokens.
        student_common: bool [V], student ids with one among the teacher's.
        fused: bool [C], chunks that the gamma rule joins to the next.
    """
    size = len(text.text)
    cells = text.classes + np.uint8(len(CLASSES)) * text.code
    counts = np.zeros((CELLS, len(Statistic)))

    def count(statistic: Statistic, where: np.ndarray, weights: np.ndarray | None = None) -> None:
        counts[:, statistic] = np.bincount(where, weights, minlength=CELLS)

    count(Statistic.BYTES, cells)
    count(Statistic.COVERED_BYTES, cells[_inside(chunks, np.ones(len(chunks.starts), dtype=bool), size)])
    count(Statistic.ONE_TO_ONE_BYTES, cells[_inside(chunks, chunks.one_to_one, size)])
    for side, common, first in (
        (teacher, teacher_common, Statistic.TEACHER_TOKENS),
        (student, student_common, Statistic.STUDENT_TOKENS),
    ):
        flags = (np.ones(len(side.ids)), side.chunk >= 0, common[side.ids])
        for offset, flag in enumerate(flags):
            count(Statistic(first + offset), cells, side.share_out(flag.astype(np.float64), size))

    chunk_cells = cells[chunks.ends - 1]
    count(Statistic.CHUNKS, chunk_cells)
    count(Statistic.ONE_TO_ONE_CHUNKS, chunk_cells[chunks.one_to_one])
    count(Statistic.FUSED, chunk_cells[fused])
    in_word = text.in_word
    first_chunk = chunks.starts == text.starts[chunks.document]
    inside_word = in_word[chunks.starts] & in_word[chunks.starts - 1] & ~first_chunk
    count(Statistic.INSIDE_WORD, chunk_cells[inside_word])
    continues = text.text[chunks.starts] & _CONTINUATION_MASK == _CONTINUATION
    count(Statistic.INSIDE_CHARACTER, chunk_cells[continues])
    return counts.reshape(2, len(CLASSES), len(Statistic))


def fused_chunks(teacher: SideTokens, chunks: BatchChunks, boundary_mask: np.ndarray) -> np.ndarray:
    """bool [C]: chunks whose document goes on with a teacher token that ``boundary_mask`` [V] does not have."""
    following = chunks.last_teacher_token + 1
    ends_batch = following == len(teacher.ids)
    following = np.where(ends_batch, 0, following)
    same_document = ~ends_batch & (teacher.document[following] == chunks.document)
    return same_document & ~boundary_mask[teacher.ids[following]]


def _inside(chunks: BatchChunks, chosen: np.ndarray, size: int) -> np.ndarray:
    """bool [N]: the bytes inside the chosen chunks."""
    steps = np.zeros(size + 1, dtype=np.int8)
    steps[chunks.starts[chosen]] += 1
    steps[chunks.ends[chosen]] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).astype(bool)
