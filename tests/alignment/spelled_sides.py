"""Tokenizations by the bytes that every token stands for, and what their alignment is by definition.

The oracle never sees byte ends or flags.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from alignment.chunk_alignment import ChunkAlignment
from alignment.encoding import Encoding
from alignment.spans import align_encodings


class Token(NamedTuple):
    """A token by the bytes it stands for.

    A token of a stretch stands for the whole stretch; its end is known only if it is the last one.
    """

    start: int
    end: int
    special: bool = False
    event: int = -1
    ends_stretch: bool = True
    verbatim: bool = True


@dataclass(frozen=True)
class Side:
    """One tokenization, as the oracle sees it and as the code does."""

    tokens: list[Token]

    @property
    def encoding(self) -> Encoding:
        return Encoding(
            ids=np.zeros(len(self.tokens), dtype=np.int32),
            byte_ends=np.array([t.end if t.ends_stretch else t.start for t in self.tokens], dtype=np.int64),
            special=np.array([t.special for t in self.tokens], dtype=bool),
            boundary=np.array([t.ends_stretch for t in self.tokens], dtype=bool),
            verbatim=np.array([t.verbatim for t in self.tokens], dtype=bool),
            text_bytes=max((t.end for t in self.tokens), default=0),
        )

    @property
    def events(self) -> np.ndarray:
        return np.array([t.event for t in self.tokens], dtype=np.int64)


def align_sides(teacher: Side, student: Side) -> ChunkAlignment:
    return align_encodings(
        teacher.encoding, student.encoding, teacher_events=teacher.events, student_events=student.events
    )


class Event(int):
    """A special token of the event with this number; -1 is a special token without event."""


class Rewritten(str):
    """A token whose bytes are not those of the text that it spans, of which it has the length."""


BOS, START, ROLE, HEADER_END, TURN_END = map(Event, range(5))
OTHER = Event(-1)


def side_of(*tokens: str | bytes | Event) -> Side:
    """Tokens in the alphabet of alm.md §9.1: "Ġ" is a space, "Ċ" a newline."""
    position, side = 0, []
    for token in tokens:
        if isinstance(token, Event):
            side.append(Token(position, position, special=True, event=int(token)))
            continue
        spelled = token if isinstance(token, bytes) else token.replace("Ġ", " ").replace("Ċ", "\n").encode()
        side.append(Token(position, position + len(spelled), verbatim=not isinstance(token, Rewritten)))
        position += len(spelled)
    return Side(side)


class Chunk(NamedTuple):
    """What the oracle says of one chunk; sorted as chunks are numbered."""

    end: int
    is_event: bool  # an event comes after the text that ends at its position
    teacher: list[int]
    student: list[int]
    start: int


def text_chunks(teacher: Side, student: Side) -> tuple[list[Chunk], int]:
    """The chunks with bytes, and the number of bytes rejected."""
    offered = [{t.end for t in side.tokens if t.ends_stretch and t.end > t.start} for side in (teacher, student)]
    kept, rejected, start = [], 0, 0
    for end in sorted(offered[0] & offered[1]):
        inside = [
            [index for index, t in enumerate(side.tokens) if start <= t.start < t.end <= end]
            for side in (teacher, student)
        ]
        if all(
            side.tokens[i].verbatim for side, indices in zip((teacher, student), inside, strict=True) for i in indices
        ):
            kept.append(Chunk(end, False, inside[0], inside[1], start))
        else:
            rejected += end - start
        start = end
    return kept, rejected


def ranked_events(side: Side) -> dict[tuple[int, int, int], list[int]]:
    """(number, position, rank among those) -> tokens of every event outside a stretch."""
    events: dict[tuple[int, int, int], list[int]] = {}
    in_stretch, run, previous = False, [], -1
    for index, token in enumerate(side.tokens):
        if token.event >= 0 and token.event == previous:
            run.append(index)
        elif token.event >= 0:
            run = [index]
            rank = sum(key[:2] == (token.event, token.start) for key in events)
            if not in_stretch:
                events[token.event, token.start, rank] = run
        in_stretch = in_stretch if token.special else not token.ends_stretch
        previous = token.event
    return events


def event_chunks(teacher: Side, student: Side) -> list[Chunk]:
    """Events of both sides with the same key, without those that cross another."""
    left, right = ranked_events(teacher), ranked_events(student)
    pairs = [(key[1], left[key], right[key]) for key in left if key in right]
    return [
        Chunk(position, True, ours, theirs, position)
        for position, ours, theirs in pairs
        if all((ours < other) == (theirs < their_other) for _, other, their_other in pairs if other != ours)
    ]


def check_against_oracle(teacher: Side, student: Side, alignment: ChunkAlignment) -> None:
    texts, rejected = text_chunks(teacher, student)
    chunks = sorted(texts + event_chunks(teacher, student))
    expected = [[-1] * len(teacher.tokens), [-1] * len(student.tokens)]
    for number, chunk in enumerate(chunks):
        for ids, tokens in zip(expected, (chunk.teacher, chunk.student), strict=True):
            for token in tokens:
                ids[token] = number
    assert [alignment.teacher_chunk.tolist(), alignment.student_chunk.tolist()] == expected
    assert alignment.chunk_starts.tolist() == [chunk.start for chunk in chunks]
    assert alignment.chunk_ends.tolist() == [chunk.end for chunk in chunks]
    assert alignment.num_chunks == len(chunks)
    assert alignment.rejected_bytes == rejected
    size = max((t.end for t in teacher.tokens + student.tokens), default=0)
    assert alignment.text_bytes == size
    covered = sum(chunk.end - chunk.start for chunk in texts)
    assert alignment.coverage == pytest.approx(covered / size if size else 1.0)


def spans(side_ids: list[int], chunk: int) -> tuple[int, int]:
    tokens = [index for index, token_chunk in enumerate(side_ids) if token_chunk == chunk]
    return tokens[0], tokens[-1] + 1


def side_encoding(ends: np.ndarray) -> Encoding:
    flags = np.zeros(len(ends), dtype=bool)
    ids = np.zeros(len(ends), dtype=np.int32)
    return Encoding(ids, ends.astype(np.int64), flags, ~flags, ~flags, text_bytes=int(max(ends, default=0)))


@st.composite
def sides(draw: st.DrawFn, size: int, *, exact: bool = False) -> Side:
    """A tokenization of ``size`` bytes with special tokens, events, stretches, rewritten tokens and truncation."""
    tokens: list[Token] = []
    cuts = sorted(draw(st.sets(st.integers(1, size)))) if size else []

    def specials(position: int) -> None:
        for event in draw(st.lists(st.sampled_from([-1, 0, 1]), max_size=3)) if draw(st.booleans()) else ():
            tokens.append(Token(position, position, special=True, event=event))

    specials(0)
    for start, end in zip([0, *cuts], cuts, strict=False):
        verbatim = exact or draw(st.integers(0, 4)) > 0
        for _ in range(0 if exact else draw(st.sampled_from([0, 0, 0, 1, 2]))):
            tokens.append(Token(start, end, ends_stretch=False, verbatim=verbatim))
            if draw(st.integers(0, 4)) == 0:
                specials(start)
        if not exact and end == cuts[-1] and draw(st.integers(0, 9)) == 0:
            break
        tokens.append(Token(start, end, verbatim=verbatim))
        if draw(st.integers(0, 9)) == 0:
            tokens.append(Token(end, end))
        specials(end)
    return Side(tokens)


@st.composite
def two_sides(draw: st.DrawFn, *, exact: bool = False) -> tuple[Side, Side]:
    size = draw(st.integers(0, 8))
    return draw(sides(size, exact=exact)), draw(sides(size, exact=exact))
