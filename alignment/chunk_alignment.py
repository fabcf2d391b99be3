"""The chunks that two tokenizations of one text have in common, and how to leave some of them out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class ChunkAlignment:
    """The smallest spans of text that both tokenizations cut out, numbered from left to right.

    A chunk without bytes is a pair of matched events, such as the end of a turn on both sides.

    Attributes:
        teacher_chunk: int32 [n], the chunk of each teacher token; -1 where it belongs to none.
        student_chunk: int32 [m], the same for the student's tokens.
        chunk_starts: int64 [C], the offset of each chunk's first byte.
        chunk_ends: int64 [C], the offset one past its last byte.
        text_bytes: length of the text.
        rejected_bytes: bytes of chunks that were left out because a token in them does not have the text's bytes.
    """

    teacher_chunk: np.ndarray
    student_chunk: np.ndarray
    chunk_starts: np.ndarray
    chunk_ends: np.ndarray
    text_bytes: int
    rejected_bytes: int = 0

    @property
    def num_chunks(self) -> int:
        """C."""
        return len(self.chunk_ends)

    @property
    def coverage(self) -> float:
        """Share of the text's bytes inside chunks, 1.0 for an empty text."""
        return self.chunk_bytes / self.text_bytes if self.text_bytes else 1.0

    @property
    def chunk_bytes(self) -> int:
        """Number of bytes inside chunks."""
        return int(self.chunk_ends.sum() - self.chunk_starts.sum())


def mask_chunks(
    alignment: ChunkAlignment, *, teacher: np.ndarray | None = None, student: np.ndarray | None = None
) -> ChunkAlignment:
    """Drop every chunk that holds a masked token on either side, and number the others anew.

    A chunk is dropped whole: part of a teacher's chunk is not comparable with a student's (alm.md §7, no. 9).

    Args:
        alignment: of n teacher tokens and m student tokens.
        teacher: bool [n], True for tokens that must not be scored, such as a prompt's; none by default.
        student: bool [m], the same for the student.

    Raises:
        ValueError: a mask has another shape than the side's tokens, or is not boolean.
    """
    keep = np.ones(alignment.num_chunks, dtype=bool)
    masks = (("teacher", teacher, alignment.teacher_chunk), ("student", student, alignment.student_chunk))
    for side, mask, chunk in masks:
        if mask is None:
            continue
        mask = np.asarray(mask)
        if mask.shape != chunk.shape or (mask.dtype != bool and mask.size):
            raise ValueError(
                f"the {side} mask must be bool of shape {chunk.shape}, one flag a token; "
                f"got {mask.dtype} of shape {mask.shape}"
            )
        masked = chunk[mask.astype(bool)]
        keep[masked[masked >= 0]] = False
    return _keep_chunks(alignment, keep)


def reject_chunks(
    alignment: ChunkAlignment, teacher_verbatim: np.ndarray, student_verbatim: np.ndarray
) -> ChunkAlignment:
    """Drop every chunk with a token whose bytes are not the text's, and count the bytes so lost (alm.md §9.1 Q).

    Args:
        alignment: of n teacher tokens and m student tokens.
        teacher_verbatim: bool [n], as in ``Encoding``.
        student_verbatim: bool [m].
    """
    kept = mask_chunks(alignment, teacher=~teacher_verbatim, student=~student_verbatim)
    lost = alignment.chunk_bytes - kept.chunk_bytes
    return replace(kept, rejected_bytes=alignment.rejected_bytes + lost)


def _keep_chunks(alignment: ChunkAlignment, keep: np.ndarray) -> ChunkAlignment:
    """The alignment with the chunks of bool [C] ``keep`` only."""
    # The entry at the end is for tokens outside every chunk: their -1 reads it.
    renumbered = np.full(alignment.num_chunks + 1, -1, dtype=np.int32)
    renumbered[:-1][keep] = np.arange(np.count_nonzero(keep), dtype=np.int32)
    return replace(
        alignment,
        teacher_chunk=renumbered[alignment.teacher_chunk],
        student_chunk=renumbered[alignment.student_chunk],
        chunk_starts=alignment.chunk_starts[keep],
        chunk_ends=alignment.chunk_ends[keep],
    )
