"""Which teacher token the bytes of every student token lie in: the geometry of byte-exact targets.

Legend: B sequences, T tokens, N student tokens in valid chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losses.chunks import TokenizedSide, chunk_sums, chunk_valid


class ByteRows(NamedTuple):
    """For each of N student tokens, where it lies in the teacher's tokens; bytes count within the text.

    A token is named by its flat position in [B * T]; what predicts it is the position before.

    Attributes:
        student: int64 [N], the student's token.
        teacher: int64 [N], the teacher's token that holds the student token's first byte.
        last_teacher: int64 [N], the teacher's token that holds its last byte.
        offset: int64 [N], bytes of ``teacher`` before the student's token; 0 where both begin together.
        length: int64 [N], bytes of the student's token.
        remaining: int64 [N], bytes of ``teacher`` from the student token's first byte on.
        special: bool [N], a special token facing a special token; all its byte counts are 1.
        ends_chunk: bool [N], the teacher's token ends where a chunk ends, so both have a boundary there.
    """

    student: Tensor
    teacher: Tensor
    last_teacher: Tensor
    offset: Tensor
    length: Tensor
    remaining: Tensor
    special: Tensor
    ends_chunk: Tensor


def byte_rows(teacher: TokenizedSide, student: TokenizedSide, num_chunks: int) -> ByteRows:
    """Locate every student token of the chunks that are valid on both sides.

    A chunk without bytes is kept only if it is one special token on either side, as an end of turn.
    """
    valid = chunk_valid(teacher.scored, teacher.chunk, num_chunks)
    valid = valid & chunk_valid(student.scored, student.chunk, num_chunks)
    special = valid
    for side in (teacher, student):
        tokens = chunk_sums(torch.ones_like(side.chunk), side.chunk, num_chunks)
        special = special & (tokens == 1) & (chunk_sums(side.lengths, side.chunk, num_chunks) == 0)
    has_bytes = valid & (chunk_sums(student.lengths, student.chunk, num_chunks) > 0)
    kept = special | has_bytes

    # One coordinate for both sides: the kept chunks' bytes one after the other, a special token counting as one.
    teacher_tokens, teacher_lengths, _ = _kept_tokens(teacher, kept, special)
    tokens, lengths, is_special = _kept_tokens(student, kept, special)
    teacher_ends, ends = teacher_lengths.cumsum(0), lengths.cumsum(0)
    starts = ends - lengths
    index = torch.searchsorted(teacher_ends, starts, right=True)
    last = torch.searchsorted(teacher_ends, ends - 1, right=True)
    boundaries = torch.isin(teacher_ends, ends)
    return ByteRows(
        student=tokens,
        teacher=teacher_tokens[index],
        last_teacher=teacher_tokens[last],
        offset=starts - (teacher_ends - teacher_lengths)[index],
        length=lengths,
        remaining=teacher_ends[index] - starts,
        special=is_special,
        ends_chunk=boundaries[index],
    )


def _kept_tokens(side: TokenizedSide, kept: Tensor, special: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat positions, lengths and specialness of the tokens in kept chunks, left to right.

    Of chunks with bytes, tokens without any (which no tokenizer should give) are left out.
    """
    chunk = side.chunk.clamp(min=0)
    in_kept = (side.chunk >= 0) & kept.gather(1, chunk)
    is_special = in_kept & special.gather(1, chunk)
    lengths = torch.where(is_special, 1, side.lengths)
    tokens = (in_kept & (lengths > 0)).flatten().nonzero().squeeze(1)
    return tokens, lengths.flatten()[tokens], is_special.flatten()[tokens]
