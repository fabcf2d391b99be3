"""Which teacher token the bytes of every student token lie in: the geometry of byte-exact targets.

Both sides are laid on one line, the bytes of the chunks that are kept one after the other; a special token counts as
one byte. A token is named by its flat position in [B * T]; what predicts it is the position before.

Legend: B sequences, T tokens, N student tokens and K teacher tokens on the line.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from losses.chunks import TokenizedSide, chunk_sizes, chunk_sums, chunk_valid


class ByteRows(NamedTuple):
    """For each of N student tokens, where it lies in the teacher's tokens.

    Attributes:
        student, student_id: int64 [N], the student's token: its position and its id.
        teacher, teacher_id: int64 [N], the teacher's token that holds the student token's first byte.
        start: int64 [N], place of the student token's first byte on the line.
        offset: int64 [N], bytes of ``teacher`` before the student's token; 0 where both begin together.
        length: int64 [N], bytes of the student's token.
        remaining: int64 [N], bytes of ``teacher`` from the student token's first byte on.
        special: bool [N], a special token facing a special token.
        meets_end: bool [N], the student has a boundary where ``teacher`` ends.
    """

    student: Tensor
    student_id: Tensor
    teacher: Tensor
    teacher_id: Tensor
    start: Tensor
    offset: Tensor
    length: Tensor
    remaining: Tensor
    special: Tensor
    meets_end: Tensor

    @property
    def root(self) -> Tensor:
        """bool [N]: both tokens begin together."""
        return self.offset == 0

    @property
    def spanning(self) -> Tensor:
        """bool [N]: the student's token ends in a later token of the teacher."""
        return self.length > self.remaining

    @property
    def has_target(self) -> Tensor:
        """bool [N]: all but those inside a teacher token at whose end the student has no boundary."""
        return self.root | self.spanning | self.meets_end

    def at(self, index: Tensor) -> Self:
        """The rows at ``index``: int64 positions or a bool [N]."""
        return type(self)(*(field[index] for field in self))


class TeacherLine(NamedTuple):
    """The teacher's tokens on the line.

    Attributes:
        position, id: int64 [K], flat positions and ids.
        start: int64 [K], places of their first bytes.
        owner: int64 [number of bytes], the index in K of the token that holds each byte.
        stop: int64 [K], place where the text that a token belongs to breaks off: at a special token, or at text that
            is in no kept chunk.
    """

    position: Tensor
    id: Tensor
    start: Tensor
    owner: Tensor
    stop: Tensor


def byte_rows(teacher: TokenizedSide, student: TokenizedSide, num_chunks: int) -> tuple[ByteRows, TeacherLine]:
    """Locate every student token of the chunks that are valid on both sides.

    A chunk is kept if its tokens have equally many bytes on either side. They have not where one tokenizer alone puts a
    space before a text, if ``lengths`` are those of the vocabulary. A chunk without bytes is kept if it is one special
    token on either side, as an end of turn.
    """
    kept = chunk_valid(teacher.scored, teacher.chunk, num_chunks)
    kept = kept & chunk_valid(student.scored, student.chunk, num_chunks)
    teacher_bytes, student_bytes = (chunk_sums(side.lengths, side.chunk, num_chunks) for side in (teacher, student))
    kept = kept & (teacher_bytes == student_bytes)
    special = kept & (student_bytes == 0)
    for side in (teacher, student):
        special = special & (chunk_sizes(side.chunk, num_chunks) == 1)
    kept = special | (kept & (student_bytes > 0))

    theirs, ours = _Tokens.of(teacher, kept, special), _Tokens.of(student, kept, special)
    their_ends, ends = theirs.length.cumsum(0), ours.length.cumsum(0)
    their_starts, starts = their_ends - theirs.length, ends - ours.length
    owner = torch.repeat_interleave(theirs.length)
    index = owner[starts]
    rows = ByteRows(
        student=ours.position,
        student_id=ours.id,
        teacher=theirs.position[index],
        teacher_id=theirs.id[index],
        start=starts,
        offset=starts - their_starts[index],
        length=ours.length,
        remaining=their_ends[index] - starts,
        special=ours.special,
        meets_end=torch.isin(their_ends, ends)[index],
    )
    breaks = torch.cat([their_ends[theirs.last_of_text()], ends[ours.last_of_text()]]).unique()
    stop = breaks[torch.searchsorted(breaks, their_starts, right=True)]
    return rows, TeacherLine(theirs.position, theirs.id, their_starts, owner, stop)


class _Tokens(NamedTuple):
    """The tokens of one side in kept chunks, left to right; those of chunks with bytes that have none are left out."""

    position: Tensor
    id: Tensor
    length: Tensor
    special: Tensor

    @classmethod
    def of(cls, side: TokenizedSide, kept: Tensor, special: Tensor) -> Self:
        chunk = side.chunk.clamp(min=0)
        in_kept = (side.chunk >= 0) & kept.gather(1, chunk)
        is_special = in_kept & special.gather(1, chunk)
        lengths = torch.where(is_special, 1, side.lengths)
        position = (in_kept & (lengths > 0)).flatten().nonzero().squeeze(1)
        return cls(position, side.ids.flatten()[position], lengths.flatten()[position], is_special.flatten()[position])

    def last_of_text(self) -> Tensor:
        """bool: whether the next token is none, a special one, or not the next position."""
        last = torch.ones_like(self.special)
        last[:-1] = (self.position.diff() != 1) | self.special[:-1] | self.special[1:]
        return last
