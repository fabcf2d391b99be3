"""Agreement with the teacher over chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.agreement import ScoredTokens, greedy_agree, window_agreement

VOCABULARY = [b"a", b"ab", b"b", b" the", b" th", None]


def scored(ends: list[int], logp: list[float], greedy: list[int]) -> ScoredTokens:
    return ScoredTokens(np.array(ends), np.array(logp, dtype=np.float32), np.array(greedy, dtype=np.int32))


def test_hand_worked() -> None:
    # Scored from byte 10. Common ends 13 and 15: chunks 10..13 (teacher 2 tokens, student 1) and 13..15 (1 and 2).
    teacher = scored([12, 13, 15], [-1.0, -0.5, -2.0], [0, 2, 3])
    student = scored([13, 14, 15], [-1.0, -0.25, -0.25], [1, 5, 4])
    found = window_agreement(teacher, student, VOCABULARY.__getitem__, VOCABULARY.__getitem__, begin=10)
    assert found.chunks == 2
    assert found.absolute_difference == pytest.approx(abs(-1.5 + 1.0) + abs(-2.0 + 0.5))
    # Chunk 10..13: `a` is a prefix of `ab`. Chunk 13..15: the teacher's ` the` against the student's special.
    assert found.same_top1 == 1


@pytest.mark.parametrize(
    ("first", "second", "agree"),
    [
        (b" the", b" the", True),
        (b" th", b" the", True),
        (b" the", b" th", True),
        (b" the", b" then", True),
        (b" the", b"the", False),
        (None, None, True),
        (None, b"a", False),
        (b"a", None, False),
        (b"", b"a", False),
    ],
)
def test_greedy_tokens_agree_when_one_is_a_prefix(first: bytes | None, second: bytes | None, agree: bool) -> None:
    assert greedy_agree(first, second) is agree


def test_sides_that_end_at_different_bytes_are_refused() -> None:
    side = scored([12, 15], [-1.0, -1.0], [0, 0])
    shifted = scored([12, 28], [-1.0, -1.0], [0, 0])
    with pytest.raises(ValueError, match="byte 15, the student's at 28"):
        window_agreement(side, shifted, VOCABULARY.__getitem__, VOCABULARY.__getitem__, begin=10)


@st.composite
def two_sides(draw: st.DrawFn) -> tuple[int, ScoredTokens, ScoredTokens]:
    begin, length = draw(st.integers(0, 20)), draw(st.integers(1, 30))
    sides = []
    for _ in range(2):
        ends = sorted(draw(st.sets(st.integers(1, length))) | {length})
        count = len(ends)
        logp = draw(st.lists(st.floats(-20, 0, width=32), min_size=count, max_size=count))
        greedy = draw(st.lists(st.integers(0, len(VOCABULARY) - 1), min_size=count, max_size=count))
        sides.append(scored([begin + end for end in ends], logp, greedy))
    return begin, *sides


@given(two_sides())
def test_matches_a_walk_over_the_bytes(sides: tuple[int, ScoredTokens, ScoredTokens]) -> None:
    begin, teacher, student = sides
    chunks, difference, same = 0, 0.0, 0
    running, first = [0.0, 0.0], [None, None]
    for byte in range(begin + 1, int(teacher.ends[-1]) + 1):
        ended = 0
        for index, side in enumerate((teacher, student)):
            for token, end in enumerate(side.ends.tolist()):
                if end == byte:
                    ended += 1
                    running[index] += float(side.logp[token])
                    first[index] = int(side.greedy[token]) if first[index] is None else first[index]
        if ended == 2:
            chunks += 1
            difference += abs(running[0] - running[1])
            left, right = VOCABULARY[first[0]], VOCABULARY[first[1]]
            prefix = left is not None and right is not None and left[: len(right)] == right[: len(left)]
            same += prefix or (left is None and right is None)
            running, first = [0.0, 0.0], [None, None]
    found = window_agreement(teacher, student, VOCABULARY.__getitem__, VOCABULARY.__getitem__, begin=begin)
    assert (found.chunks, found.same_top1) == (chunks, same)
    assert found.absolute_difference == pytest.approx(difference, abs=1e-6)


@given(two_sides())
def test_a_model_agrees_fully_with_itself(sides: tuple[int, ScoredTokens, ScoredTokens]) -> None:
    begin, teacher, _ = sides
    found = window_agreement(teacher, teacher, VOCABULARY.__getitem__, VOCABULARY.__getitem__, begin=begin)
    assert found == (len(teacher.ends), 0.0, len(teacher.ends))
