"""A batch of documents laid end to end: the tokens and the chunks of both tokenizations in flat arrays.

Legend: N bytes, D documents, T tokens, C chunks. Every position is an offset into the batch's N bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from alignment.chunk_alignment import ChunkAlignment
from alignment.encoding import Encoding


@dataclass(frozen=True)
class SideTokens:
    """One side's tokens of text; special tokens are left out.

    Attributes:
        ids: int32 [T].
        starts, ends: int64 [T], the bytes that each token spans.
        chunk: int64 [T], the token's chunk in the batch, -1 where it belongs to none.
        verbatim: bool [T], tokens that spell the bytes that they span.
        document: int64 [T], the document of each token.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    chunk: np.ndarray
    verbatim: np.ndarray
    document: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int64 [T]: bytes of each token."""
        return self.ends - self.starts

    def share_out(self, weights: np.ndarray, size: int) -> np.ndarray:
        """Each token's weight in equal parts on the bytes that it spans: float64 [size].

        A token without bytes of its own shares those of the document's next token that has some, since it is a piece
        of the same stretch, or of its last one if none follows. In a document without such tokens it is left out.
        """
        owners, owner_of = self._owners
        totals = np.bincount(owner_of[owner_of >= 0], weights[owner_of >= 0], minlength=len(owners))
        lengths = self.lengths[owners]
        parts = np.repeat(totals / lengths, lengths)
        if len(parts) == size:
            return parts
        spread = np.zeros(size)
        before = np.cumsum(lengths) - lengths
        spread[np.arange(len(parts)) + np.repeat(self.starts[owners] - before, lengths)] = parts
        return spread

    @cached_property
    def _owners(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that have bytes [O], and int64 [T]: which of them, -1 for none, each token shares the bytes of."""
        has_bytes = self.lengths > 0
        owners = np.flatnonzero(has_bytes)
        following = np.cumsum(has_bytes) - has_bytes
        found = np.full(len(self.ids), -1)
        for candidate in (following - 1, following):
            present = (candidate >= 0) & (candidate < len(owners))
            present[present] = self.document[owners[candidate[present]]] == self.document[present]
            found[present] = candidate[present]
        return owners, found


@dataclass(frozen=True)
class BatchChunks:
    """The chunks, from left to right.

    Attributes:
        starts, ends: int64 [C], the bytes of each chunk.
        teacher_tokens, student_tokens: int64 [C], tokens of each chunk.
        last_teacher_token: int64 [C], index of each chunk's last teacher token.
        document: int64 [C].
    """

    starts: np.ndarray
    ends: np.ndarray
    teacher_tokens: np.ndarray
    student_tokens: np.ndarray
    last_teacher_token: np.ndarray
    document: np.ndarray

    @property
    def one_to_one(self) -> np.ndarray:
        """bool [C]: chunks of one token on either side."""
        return (self.teacher_tokens == 1) & (self.student_tokens == 1)


def flatten(
    teachers: Sequence[Encoding], students: Sequence[Encoding], alignments: Sequence[ChunkAlignment], starts: np.ndarray
) -> tuple[SideTokens, SideTokens, BatchChunks]:
    """Join a batch of at least one document.

    Args:
        teachers, students: one encoding for each document.
        alignments: the alignment of the two.
        starts: int64 [D + 1], where each document starts in the batch, and N.
    """
    num_chunks = np.array([alignment.num_chunks for alignment in alignments], dtype=np.int64)
    teacher = _join(teachers, [alignment.teacher_chunk for alignment in alignments], num_chunks, starts)
    student = _join(students, [alignment.student_chunk for alignment in alignments], num_chunks, starts)
    document = np.repeat(np.arange(len(num_chunks)), num_chunks)
    members = np.flatnonzero(teacher.chunk >= 0)
    teacher_tokens = np.bincount(teacher.chunk[members], minlength=len(document))
    chunks = BatchChunks(
        starts=np.concatenate([alignment.chunk_starts for alignment in alignments]) + starts[document],
        ends=np.concatenate([alignment.chunk_ends for alignment in alignments]) + starts[document],
        teacher_tokens=teacher_tokens,
        student_tokens=np.bincount(student.chunk[student.chunk >= 0], minlength=len(document)),
        last_teacher_token=members[np.cumsum(teacher_tokens) - 1],
        document=document,
    )
    return teacher, student, chunks


def _join(
    encodings: Sequence[Encoding], chunks: Sequence[np.ndarray], num_chunks: np.ndarray, starts: np.ndarray
) -> SideTokens:
    """One side's encodings; ``chunks`` has for each document the chunk of every token, ``num_chunks`` int64 [D]."""
    sizes = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
    document = np.repeat(np.arange(len(sizes)), sizes)
    ends = np.concatenate([encoding.byte_ends for encoding in encodings]) + starts[document]
    token_starts = np.concatenate([[0], ends[:-1]])[: len(ends)]
    filled = sizes > 0
    token_starts[(np.cumsum(sizes) - sizes)[filled]] = starts[:-1][filled]
    chunk = np.concatenate(chunks).astype(np.int64)
    chunk = np.where(chunk < 0, -1, chunk + (np.cumsum(num_chunks) - num_chunks)[document])
    text = ~np.concatenate([encoding.special for encoding in encodings])
    return SideTokens(
        ids=np.concatenate([encoding.ids for encoding in encodings])[text],
        starts=token_starts[text],
        ends=ends[text],
        chunk=chunk[text],
        verbatim=np.concatenate([encoding.verbatim for encoding in encodings])[text],
        document=document[text],
    )
