"""Two tokenizations of one text, aligned where their byte boundaries coincide (alm.md §1.2 and §8.2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from alignment.byte_view import ByteView, Encoding


@dataclass(frozen=True)
class ChunkAlignment:
    """The smallest spans of text that both tokenizations cut out, numbered from left to right.

    Attributes:
        teacher_chunk: int32 [n], the chunk of each teacher token; -1 where it belongs to none.
        student_chunk: int32 [m], the same for the student's tokens.
        num_chunks: C.
        coverage: share of the text's bytes inside chunks, 1.0 for an empty text. The text ends where the longer of
            the two tokenizations ends.
    """

    teacher_chunk: np.ndarray
    student_chunk: np.ndarray
    num_chunks: int
    coverage: float


class AlignedText(NamedTuple):
    """One text in both tokenizations, and their alignment."""

    teacher: Encoding
    student: Encoding
    chunks: ChunkAlignment


def align(
    teacher_ends: np.ndarray,
    student_ends: np.ndarray,
    *,
    teacher_special: np.ndarray | None = None,
    student_special: np.ndarray | None = None,
) -> ChunkAlignment:
    """Align two tokenizations of the same bytes: a chunk ends wherever tokens of both sides end.

    A boundary may lie inside a character. Tokens without bytes (special or not) and tokens after the last common
    boundary belong to no chunk; a special token inside a chunk does not split it.

    Args:
        teacher_ends: integers [n], the byte offset at which each token ends, never decreasing.
        student_ends: integers [m], the same for the student.
        teacher_special: bool [n], tokens that stand for no text, such as ``<bos>``; none by default.
        student_special: bool [m], the same for the student.

    Raises:
        ValueError: offsets decrease or are negative, or a special token spans bytes.
    """
    teacher_ends, teacher_spans = _checked("teacher", teacher_ends, teacher_special)
    student_ends, student_spans = _checked("student", student_ends, student_special)
    chunk_ends = np.intersect1d(teacher_ends[teacher_spans], student_ends[student_spans], assume_unique=True)
    text_bytes = max(_last(teacher_ends), _last(student_ends))
    return ChunkAlignment(
        teacher_chunk=_chunk_ids(teacher_ends, teacher_spans, chunk_ends),
        student_chunk=_chunk_ids(student_ends, student_spans, chunk_ends),
        num_chunks=len(chunk_ends),
        coverage=_last(chunk_ends) / text_bytes if text_bytes else 1.0,
    )


def align_texts(teacher: ByteView, student: ByteView, text: str) -> AlignedText:
    """Encode one text with both tokenizers and align the two.

    Both encodings are verified to spell the text's bytes, so the two sides of every chunk have equal bytes.

    Raises:
        InexactEncoding: a tokenizer does not reproduce the text.
    """
    teacher_encoding = teacher.encode(text)
    student_encoding = student.encode(text)
    chunks = align(
        teacher_encoding.byte_ends,
        student_encoding.byte_ends,
        teacher_special=teacher_encoding.special,
        student_special=student_encoding.special,
    )
    return AlignedText(teacher_encoding, student_encoding, chunks)


def _checked(side: str, ends: np.ndarray, special: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The offsets as int64 [T], and bool [T]: tokens that span at least one byte."""
    ends = np.asarray(ends)
    if ends.ndim != 1 or not (np.issubdtype(ends.dtype, np.integer) or ends.size == 0):
        raise ValueError(f"{side}_ends must be a vector of integers, got {ends.dtype} of shape {ends.shape}")
    ends = ends.astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    if (lengths < 0).any():
        token = int(np.argmax(lengths < 0))
        raise ValueError(
            f"{side}_ends must start at 0 or more and never decrease, but token {token} ends at {ends[token]}"
        )
    spans = lengths > 0
    if special is None:
        return ends, spans
    special = np.asarray(special, dtype=bool)
    if special.shape != ends.shape:
        raise ValueError(f"{side}_special has shape {special.shape}, but {side}_ends has shape {ends.shape}")
    if (special & spans).any():
        token = int(np.argmax(special & spans))
        raise ValueError(
            f"special {side} token {token} spans {lengths[token]} bytes: special tokens stand for no text, "
            "so its string was counted as text and every later offset is wrong"
        )
    return ends, spans


def _chunk_ids(ends: np.ndarray, spans: np.ndarray, chunk_ends: np.ndarray) -> np.ndarray:
    """int32 [T]: the chunk that holds each token's last byte, -1 for tokens outside every chunk."""
    chunks = np.searchsorted(chunk_ends, ends).astype(np.int32)
    chunks[~spans | (chunks == len(chunk_ends))] = -1
    return chunks


def _last(ends: np.ndarray) -> int:
    return int(ends[-1]) if ends.size else 0
