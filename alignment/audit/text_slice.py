"""One part of the audited text as plain values. Units are those of ``alignment.audit.measurements``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextSlice:
    """What happens to one part of the text: all of it, a domain, a class of characters, a script, prose or code."""

    name: str
    """The part's name."""
    bytes: float
    """Bytes of text in it."""
    share: float | None
    """Of all bytes."""
    coverage: float | None
    """Share of its bytes inside chunks."""
    teacher_token_coverage: float | None
    """Share of its teacher tokens inside chunks."""
    student_token_coverage: float | None
    """Share of its student tokens inside chunks."""
    one_to_one: float | None
    """Share of its bytes inside chunks of one token on either side."""
    teacher_tokens: float
    """Teacher tokens in it."""
    student_tokens: float
    """Student tokens in it."""
    teacher_tokens_per_byte: float | None
    """The teacher's fertility."""
    student_tokens_per_byte: float | None
    """The student's fertility."""
    length_ratio: float | None
    """Teacher / student tokens."""
    teacher_common: float | None
    """Share of its teacher tokens that have an exact counterpart: a student token of the same bytes."""
    student_common: float | None
    """Share of its student tokens that have an exact counterpart in the teacher."""
    chunks: float
    """Chunks that end in it."""
    one_to_one_chunks: float | None
    """Share of these of one token on either side."""
    fused: float | None
    """Share of these after which no boundary token follows, so that ALM's gamma rule joins them to the next."""
    inside_word: float | None
    """Share of these that start inside a word or number: a letter, mark or digit on either side of the start."""
    inside_character: float | None
    """Share of these that start inside a character's UTF-8 bytes."""
