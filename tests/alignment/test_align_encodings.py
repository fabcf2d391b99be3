"""Alignment of two encodings: events, stretches without known boundaries, rewritten tokens."""

from __future__ import annotations

import copy
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spelled_sides import (
    BOS,
    HEADER_END,
    OTHER,
    ROLE,
    START,
    TURN_END,
    Rewritten,
    Side,
    Token,
    align_sides,
    check_against_oracle,
    side_encoding,
    side_of,
    spans,
    two_sides,
)

from alignment.encoding import Encoding
from alignment.spans import align_encodings


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
