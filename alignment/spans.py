"""Two tokenizations of one text, aligned where their byte boundaries coincide (alm.md §1.2 and §8.2.1)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from alignment.byte_view import ByteView
from alignment.chunk_alignment import ChunkAlignment, mask_chunks, reject_chunks
from alignment.encoding import Encoding
from alignment.events import insert_events
from alignment.flat_tokens import Boundaries, FlatTokens, find_boundaries

__all__ = ["AlignedText", "ChunkAlignment", "align", "align_batch", "align_encodings", "align_texts", "mask_chunks"]

_TOKENS_AT_ONCE = 1 << 16  # per side: beyond this the flat arrays fall out of the processor's cache


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
    boundary belong to no chunk; a special token inside a chunk does not split it. The text ends where the longer of
    the two tokenizations ends.

    Args:
        teacher_ends: integers [n], the byte offset at which each token ends, never decreasing.
        student_ends: integers [m], the same for the student.
        teacher_special: bool [n], tokens that stand for no text, such as ``<bos>``; none by default.
        student_special: bool [m], the same for the student.

    Raises:
        ValueError: offsets decrease or are negative, or a special token spans bytes.
    """
    teacher = _one_document("teacher", teacher_ends, teacher_special)
    return _align_flat(teacher, _one_document("student", student_ends, student_special))[0]


def align_encodings(
    teacher: Encoding,
    student: Encoding,
    *,
    teacher_events: np.ndarray | None = None,
    student_events: np.ndarray | None = None,
) -> ChunkAlignment:
    """Align two encodings of one text, reject the chunks that a tokenizer rewrote, and match events.

    A chunk with a token that is not verbatim, on either side, is left out and its bytes counted in
    ``rejected_bytes``. An event is a special token that means the same on both sides (the start of a text, the end of
    a turn); ``events.insert_events`` says how they are matched.

    Args:
        teacher: n tokens.
        student: m tokens.
        teacher_events: int [n], the event that each special token stands for, -1 for none; given with the student's.
        student_events: int [m], the same for the student, in the same numbers.

    Raises:
        ValueError: offsets decrease or are negative, a special token spans bytes, or events do not fit the tokens.
    """
    alignment = align_batch([teacher], [student])[0]
    if teacher_events is None and student_events is None:
        return alignment
    if teacher_events is None or student_events is None:
        raise ValueError("events of one side only match nothing: give both teacher_events and student_events")
    return insert_events(alignment, teacher, student, teacher_events, student_events)


def align_batch(teachers: Sequence[Encoding], students: Sequence[Encoding]) -> list[ChunkAlignment]:
    """``align_encodings`` without events for many texts in one vectorised pass, linear in tokens and bytes.

    Raises:
        ValueError: the sides have different numbers of texts, offsets decrease or are negative, or a special token
            spans bytes; names the document.
    """
    if len(teachers) != len(students):
        raise ValueError(f"{len(teachers)} teacher encodings but {len(students)} student encodings")
    alignments: list[ChunkAlignment] = []
    for part in _parts(teachers, students):
        alignments += _align_part(teachers[part], students[part])
    return alignments


def align_texts(teacher: ByteView, student: ByteView, text: str) -> AlignedText:
    """Encode one text with both tokenizers and align the two.

    Both encodings are verified to spell the text's bytes, so the two sides of every chunk have equal bytes.

    Raises:
        InexactEncoding: a tokenizer does not reproduce the text.
    """
    teacher_encoding, student_encoding = teacher.encode(text), student.encode(text)
    return AlignedText(teacher_encoding, student_encoding, align_encodings(teacher_encoding, student_encoding))


def _one_document(side: str, ends: np.ndarray, special: np.ndarray | None) -> FlatTokens:
    ends = np.asarray(ends)
    if ends.ndim != 1 or not (np.issubdtype(ends.dtype, np.integer) or ends.size == 0):
        raise ValueError(f"{side}_ends must be a vector of integers, got {ends.dtype} of shape {ends.shape}")
    special = np.zeros(ends.shape, dtype=bool) if special is None else np.asarray(special, dtype=bool)
    if special.shape != ends.shape:
        raise ValueError(f"{side}_special has shape {special.shape}, but {side}_ends has shape {ends.shape}")
    ends = ends.astype(np.int64, copy=False)
    return FlatTokens(side, ends, special, np.ones(ends.shape, dtype=bool), np.array([0, len(ends)]), _last_end(ends))


def _last_end(ends: np.ndarray) -> np.ndarray:
    """int64 [1]: where a document ends that ends with its last token."""
    return ends[-1:] if ends.size else np.zeros(1, dtype=np.int64)


def _parts(teachers: Sequence[Encoding], students: Sequence[Encoding]) -> Iterator[slice]:
    """Runs of documents whose tokens stay in the cache."""
    start = size = 0
    for document, (teacher, student) in enumerate(zip(teachers, students, strict=True)):
        size += max(len(teacher.ids), len(student.ids))
        if size >= _TOKENS_AT_ONCE:
            yield slice(start, document + 1)
            start, size = document + 1, 0
    if start < len(teachers):
        yield slice(start, len(teachers))


def _align_part(teachers: Sequence[Encoding], students: Sequence[Encoding]) -> list[ChunkAlignment]:
    alignments = _align_flat(FlatTokens.join("teacher", teachers), FlatTokens.join("student", students))
    if all(np.concatenate([encoding.verbatim for encoding in side]).all() for side in (teachers, students)):
        return alignments
    return [
        reject_chunks(alignment, teacher.verbatim, student.verbatim)
        for alignment, teacher, student in zip(alignments, teachers, students, strict=True)
    ]


def _align_flat(teacher: FlatTokens, student: FlatTokens) -> list[ChunkAlignment]:
    """One alignment a document: a chunk ends wherever tokens of both sides close."""
    text_bytes = np.maximum(teacher.text_bytes, student.text_bytes)
    # One place more than bytes for each document, so that no document's end is the start of the next.
    bases = np.zeros(len(text_bytes) + 1, dtype=np.int64)
    (text_bytes + 1).cumsum(out=bases[1:])
    teacher_boundaries = find_boundaries(teacher, bases[:-1])
    student_boundaries = find_boundaries(student, bases[:-1])
    teacher_common = _common(teacher_boundaries, student_boundaries, int(bases[-1]))
    student_common = _common(student_boundaries, teacher_boundaries, int(bases[-1]))
    ends = teacher_boundaries.ends[teacher_common]
    splits = ends.searchsorted(bases)
    teacher_chunk = _chunk_ids(teacher_common, teacher_boundaries.in_text, teacher.splits, splits)
    student_chunk = _chunk_ids(student_common, student_boundaries.in_text, student.splits, splits)
    starts, ends = _chunk_bounds(ends, bases, splits)
    documents = zip(_ranges(teacher.splits), _ranges(student.splits), _ranges(splits), text_bytes.tolist(), strict=True)
    return [ChunkAlignment(teacher_chunk[n], student_chunk[m], starts[c], ends[c], size) for n, m, c, size in documents]


def _common(boundaries: Boundaries, other: Boundaries, size: int) -> np.ndarray:
    """bool [T]: the tokens that close where a token of the other side does; offsets are below ``size``."""
    offered = np.zeros(size, dtype=bool)
    offered[other.ends] = True
    return boundaries.closes & offered.take(boundaries.ends)


def _chunk_ids(
    common: np.ndarray, in_text: np.ndarray, token_splits: np.ndarray, chunk_splits: np.ndarray
) -> np.ndarray:
    """int32 [T]: the chunk of each token, counted from 0 in each document; -1 for tokens outside every chunk.

    Args:
        common: bool [T], tokens that end a chunk.
        in_text: bool [T], tokens that stand for text.
        token_splits: int64 [D + 1], where each document's tokens begin, and T.
        chunk_splits: int64 [D + 1], where each document's chunks begin, and C.
    """
    chunk = np.zeros(len(common), dtype=np.int32)
    chunk[1:] = common[:-1]
    chunk.cumsum(out=chunk)
    tails = np.maximum(chunk.searchsorted(chunk_splits[1:]), token_splits[:-1])
    chunk -= chunk_splits[:-1].astype(np.int32).repeat(token_splits[1:] - token_splits[:-1])
    chunk[~in_text] = -1
    for document in (tails < token_splits[1:]).nonzero()[0].tolist():
        chunk[tails[document] : token_splits[document + 1]] = -1
    return chunk


def _chunk_bounds(ends: np.ndarray, bases: np.ndarray, splits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [C] twice: start and end of each chunk in its own document, given the ends in all documents' bytes."""
    local_ends = ends - bases[:-1].repeat(splits[1:] - splits[:-1])
    starts = np.zeros_like(local_ends)
    starts[1:] = local_ends[:-1]
    starts[splits[:-1][splits[1:] > splits[:-1]]] = 0
    return starts, local_ends


def _ranges(splits: np.ndarray) -> list[slice]:
    bounds = splits.tolist()
    return [slice(start, end) for start, end in itertools.pairwise(bounds)]
