"""Alignment of encodings: events, stretches without known boundaries, rewritten tokens, batches.

The oracle of the property tests knows which bytes every token stands for and never sees byte ends or flags.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.chunk_alignment import ChunkAlignment
from alignment.encoding import Encoding
from alignment.spans import align_batch, align_encodings


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


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        # alm.md §9.1. A token that one side has alone counts to the next chunk's index span there, and is -1 here.
        pytest.param(
            side_of(START, "Hel", "lo", "?", HEADER_END, "Ċ"),
            side_of(START, START, "Hello", "?", HEADER_END, HEADER_END, "Ċ"),
            [(0, 1, 0, 2), (1, 3, 2, 3), (3, 4, 3, 4), (4, 5, 4, 6), (5, 6, 6, 7)],
            id="A",
        ),
        pytest.param(
            side_of(BOS, "ĠHello", "ĠWor"),
            side_of(BOS, "Ġ", "Hel", "loĠ", "W", "or"),
            [(0, 1, 0, 1), (1, 3, 1, 6)],
            id="B",
        ),
        pytest.param(side_of("Hello", "Ġworld"), side_of("Hel", "lo", "Ġworld"), [(0, 1, 0, 2), (1, 2, 2, 3)], id="C1"),
        pytest.param(side_of(BOS, "Hello"), side_of(BOS, "Hel", "lo"), [(0, 1, 0, 1), (1, 2, 1, 3)], id="C2"),
        pytest.param(
            side_of(BOS, "Hello", "Ġworld"), side_of("Hel", "lo", "Ġworld"), [(1, 2, 0, 2), (2, 3, 2, 3)], id="E"
        ),
        pytest.param(
            side_of(
                BOS, START, ROLE, HEADER_END, "What", "'", "s", "Ġultra", "cre", "pid", "arian", "ism", "?",
                TURN_END, TURN_END,
            ),
            side_of(
                BOS, START, ROLE, HEADER_END, HEADER_END, "What", "'s", "Ġultr", "ac", "repid", "arian", "ism", "?",
                TURN_END,
            ),
            [
                (0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3), (3, 4, 3, 5), (4, 5, 5, 6), (5, 7, 6, 7), (7, 10, 7, 10),
                (10, 11, 10, 11), (11, 12, 11, 12), (12, 13, 12, 13), (13, 15, 13, 14),
            ],
            id="F",
        ),
        pytest.param(
            side_of("a", "Ċ", "Ċ", "b"), side_of("a", "ĊĊ", "b"), [(0, 1, 0, 1), (1, 3, 1, 2), (3, 4, 2, 3)], id="J"
        ),
        pytest.param(side_of("ab", "c", OTHER, OTHER), side_of("a", "bc", OTHER), [(0, 2, 0, 2)], id="K"),
        pytest.param(
            side_of("ab", "cd", "x"), side_of("ab", Rewritten("ce"), "x"), [(0, 1, 0, 1), (2, 3, 2, 3)], id="Q"
        ),
        # distillation_losses.md §7 and §8
        pytest.param(side_of("4", "2", "Ġapples"), side_of("42", "Ġapples"), [(0, 2, 0, 1), (2, 3, 1, 2)], id="digits"),
        pytest.param(side_of("a", "Ġto", "ken"), side_of("a", "Ġtoken"), [(0, 1, 0, 1), (1, 3, 1, 2)], id="split end"),
        pytest.param(
            side_of("a", b"\xf0\x9f", b"\x99\x82", "b"),
            side_of("a", "🙂", "b"),
            [(0, 1, 0, 1), (1, 3, 1, 2), (3, 4, 2, 3)],
            id="split emoji",
        ),
        pytest.param(
            side_of("a", b"\xe6\x9d", b"\xb1", "京"),
            side_of("a", Rewritten("東"), "京"),
            [(0, 1, 0, 1), (3, 4, 2, 3)],
            id="an unknown character",
        ),
        # events
        pytest.param(side_of("a", TURN_END), side_of("a", "b", TURN_END), [(0, 1, 0, 1)], id="not at one place"),
        pytest.param(
            side_of("a", TURN_END, OTHER, TURN_END), side_of("a", TURN_END), [(0, 1, 0, 1), (1, 2, 1, 2)], id="in order"
        ),
        pytest.param(side_of(BOS, START, "a"), side_of(START, BOS, "a"), [(2, 3, 2, 3)], id="crossing matches"),
        pytest.param(side_of(BOS, START), side_of(BOS, ROLE), [(0, 1, 0, 1)], id="no text"),
    ],
)  # fmt: skip
def test_worked_cases(teacher: Side, student: Side, expected: list[tuple[int, int, int, int]]) -> None:
    alignment = align_sides(teacher, student)
    teacher_ids, student_ids = alignment.teacher_chunk.tolist(), alignment.student_chunk.tolist()
    found = [spans(teacher_ids, chunk) + spans(student_ids, chunk) for chunk in range(alignment.num_chunks)]
    assert found == expected
    assert max([*teacher_ids, *student_ids]) == alignment.num_chunks - 1
    check_against_oracle(teacher, student, alignment)


def test_rejected_bytes_are_counted() -> None:
    alignment = align_sides(side_of("ab", "cd", "x"), side_of("ab", Rewritten("ce"), "x"))
    assert (alignment.rejected_bytes, alignment.text_bytes) == (2, 5)
    assert alignment.coverage == pytest.approx(3 / 5)
    assert alignment.chunk_starts.tolist() == [0, 4]
    assert alignment.chunk_ends.tolist() == [2, 5]


def test_a_stretch_is_one_chunk_even_where_the_other_side_cuts_it() -> None:
    stretch = [Token(1, 4, ends_stretch=False, verbatim=True), Token(1, 4, verbatim=True)]
    teacher = Side([Token(0, 1), *stretch, Token(4, 5)])
    student = Side([Token(0, 1), Token(1, 2), Token(2, 4), Token(4, 5)])
    alignment = align_sides(teacher, student)
    assert alignment.teacher_chunk.tolist() == [0, 1, 1, 2]
    assert alignment.student_chunk.tolist() == [0, 1, 1, 2]


def test_where_a_stretch_starts_is_no_boundary() -> None:
    # The teacher has no token for byte 1, and a stretch of two tokens for bytes 2 to 4.
    teacher = side_encoding(np.array([1, 2, 5]))
    teacher.boundary[1] = False
    alignment = align_encodings(teacher, side_encoding(np.array([1, 2, 5])))
    assert alignment.teacher_chunk.tolist() == alignment.student_chunk.tolist() == [0, 1, 1]
    assert alignment.chunk_ends.tolist() == [1, 5]


def test_a_stretch_that_was_cut_off_is_in_no_chunk() -> None:
    teacher = Side([Token(0, 1), Token(1, 4, ends_stretch=False)])
    student = Side([Token(0, 1), Token(1, 4)])
    alignment = align_sides(teacher, student)
    assert alignment.teacher_chunk.tolist() == alignment.student_chunk.tolist() == [0, -1]
    assert (alignment.text_bytes, alignment.coverage) == (4, 0.25)


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


@given(two_sides())
def test_encodings_align_as_defined(pair: tuple[Side, Side]) -> None:
    check_against_oracle(*pair, align_sides(*pair))


@given(two_sides())
def test_chunks_are_in_order_on_both_sides(pair: tuple[Side, Side]) -> None:
    alignment = align_sides(*pair)
    for chunk in (alignment.teacher_chunk, alignment.student_chunk):
        inside = chunk[chunk >= 0]
        assert set(inside.tolist()) == set(range(alignment.num_chunks))
        assert (np.diff(inside) >= 0).all()


@given(two_sides())
def test_swapping_the_sides_swaps_everything(pair: tuple[Side, Side]) -> None:
    forward, backward = align_sides(*pair), align_sides(*reversed(pair))
    assert forward.teacher_chunk.tolist() == backward.student_chunk.tolist()
    assert forward.student_chunk.tolist() == backward.teacher_chunk.tolist()
    for name in ("chunk_starts", "chunk_ends"):
        assert getattr(forward, name).tolist() == getattr(backward, name).tolist()
    assert (forward.rejected_bytes, forward.coverage) == (backward.rejected_bytes, backward.coverage)


@given(two_sides())
def test_encodings_are_not_changed(pair: tuple[Side, Side]) -> None:
    inputs = [*(side.encoding for side in pair), *(side.events for side in pair)]
    before = copy.deepcopy(inputs)
    align_encodings(inputs[0], inputs[1], teacher_events=inputs[2], student_events=inputs[3])
    for now, then in zip(inputs[:2], before[:2], strict=True):
        for field in fields(Encoding):
            np.testing.assert_array_equal(getattr(now, field.name), getattr(then, field.name))
    for now, then in zip(inputs[2:], before[2:], strict=True):
        np.testing.assert_array_equal(now, then)


@given(two_sides(), st.integers(0, 3), st.integers(0, 3))
def test_padding_changes_nothing(pair: tuple[Side, Side], teacher_pads: int, student_pads: int) -> None:
    plain = align_sides(*pair)
    padded = []
    for side, pads in zip(pair, (teacher_pads, student_pads), strict=True):
        # Padding after a truncated stretch sits where the stretch starts, like any special token there.
        last = side.encoding.byte_ends[-1] if side.tokens else 0
        padded.append(Side(side.tokens + [Token(int(last), int(last), special=True)] * pads))
    alignment = align_sides(*padded)
    assert alignment.teacher_chunk.tolist() == plain.teacher_chunk.tolist() + [-1] * teacher_pads
    assert alignment.student_chunk.tolist() == plain.student_chunk.tolist() + [-1] * student_pads
    assert alignment.chunk_ends.tolist() == plain.chunk_ends.tolist()
    assert alignment.coverage == plain.coverage


@given(two_sides())
def test_a_bos_on_one_side_only_changes_nothing(pair: tuple[Side, Side]) -> None:
    teacher, student = pair
    plain, with_bos = align_sides(teacher, student), align_sides(Side([Token(0, 0, True, 7), *teacher.tokens]), student)
    assert with_bos.teacher_chunk.tolist() == [-1, *plain.teacher_chunk.tolist()]
    assert with_bos.student_chunk.tolist() == plain.student_chunk.tolist()
    assert with_bos.chunk_starts.tolist() == plain.chunk_starts.tolist()


@given(st.lists(two_sides(), max_size=4) | st.lists(two_sides(exact=True), max_size=4))
def test_a_batch_is_its_texts_one_by_one(pairs: list[tuple[Side, Side]]) -> None:
    teachers, students = [pair[0].encoding for pair in pairs], [pair[1].encoding for pair in pairs]
    batch = align_batch(teachers, students)
    assert len(batch) == len(pairs)
    for together, teacher, student in zip(batch, teachers, students, strict=True):
        alone = align_encodings(teacher, student)
        for field in fields(ChunkAlignment):
            np.testing.assert_array_equal(getattr(together, field.name), getattr(alone, field.name))


def test_a_long_batch_is_cut_into_parts_without_a_trace() -> None:
    # More tokens than are aligned at once, and one document that is longer than that alone.
    sizes = [1, 70_000, 0, 5, 40_000, 3]
    teachers = [side_encoding(np.arange(1, size + 1)) for size in sizes]
    students = [side_encoding(np.arange(2, size + 1, 2)) for size in sizes]
    for size, alignment in zip(sizes, align_batch(teachers, students), strict=True):
        assert alignment.num_chunks == size // 2
        expected = np.arange(size) // 2
        expected[size // 2 * 2 :] = -1
        np.testing.assert_array_equal(alignment.teacher_chunk, expected)
        np.testing.assert_array_equal(alignment.student_chunk, np.arange(size // 2))


def test_text_after_the_last_token_counts_as_text() -> None:
    # "ab  " where both tokenizers drop the white space at the end.
    encoding = replace(side_encoding(np.array([1, 2])), text_bytes=4)
    assert not encoding.exact
    alignment = align_encodings(encoding, encoding)
    assert (alignment.num_chunks, alignment.text_bytes, alignment.coverage) == (2, 4, 0.5)
    with pytest.raises(ValueError, match="document 1: teacher token 1 ends at byte 2, beyond the end of the text"):
        align_batch([encoding, replace(encoding, text_bytes=1)], [encoding, encoding])


def side_encoding(ends: np.ndarray) -> Encoding:
    flags = np.zeros(len(ends), dtype=bool)
    ids = np.zeros(len(ends), dtype=np.int32)
    return Encoding(ids, ends.astype(np.int64), flags, ~flags, ~flags, text_bytes=int(max(ends, default=0)))


def test_repetitive_text_is_no_harder_than_other_text() -> None:
    # Half a million equal tokens: anything quadratic would not come back.
    size = 1 << 19
    alignment = align_encodings(
        side_encoding(np.arange(3, 3 * size + 1, 3)), side_encoding(np.arange(2, 3 * size + 1, 2))
    )
    assert alignment.num_chunks == size // 2
    assert alignment.coverage == 1.0


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ([[1, 2]], [[1, 2], [1]], "1 teacher encodings but 2 student encodings"),
        ([[1, 2], [3, 2]], [[1], [3]], "document 1: teacher_ends .* token 1 ends at 2"),
        ([[1], [], [1]], [[1], [], [-1]], "document 2: student_ends .* token 0 ends at -1"),
    ],
)
def test_a_batch_says_which_document_is_wrong(teacher: list[list[int]], student: list[list[int]], message: str) -> None:
    teachers = [side_encoding(np.array(ends)) for ends in teacher]
    students = [side_encoding(np.array(ends)) for ends in student]
    with pytest.raises(ValueError, match=message):
        align_batch(teachers, students)


@pytest.mark.parametrize(
    ("teacher_events", "student_events", "message"),
    [
        ([0, -1], None, "one side only"),
        ([0], [-1], "teacher_events must be integers of shape"),
        ([0.0, -1.0], [-1], "teacher_events must be integers"),
        ([0, 0], [-1], "teacher token 1 has event 0 but stands for text"),
    ],
)
def test_impossible_events_are_refused(
    teacher_events: list[int], student_events: list[int] | None, message: str
) -> None:
    teacher, student = side_of(BOS, "a").encoding, side_of("a").encoding
    with pytest.raises(ValueError, match=message):
        align_encodings(teacher, student, teacher_events=teacher_events, student_events=student_events)
