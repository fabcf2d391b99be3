from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from losses.position_pairs import aligned_positions, paired_positions


def side(chunks: list[list[int]]) -> SimpleNamespace:
    """Texts as chunk numbers, a row each, padded; index 0 is never scored."""
    width = max(map(len, chunks))
    window = torch.tensor([[number] * len(row) + [-1] * (width - len(row)) for number, row in enumerate(chunks)])
    chunk = torch.tensor([row + [-1] * (width - len(row)) for row in chunks])
    scored = chunk >= 0
    scored[:, 0] = False
    return SimpleNamespace(ids=chunk.clone(), chunk=chunk, scored=scored, lengths=torch.ones_like(chunk), window=window)


# Each begins with a token of no chunk. The teacher splits chunk 1 of the first text, the student chunk 0.
TEACHER = side([[-1, 0, 1, 1, 2], [-1, 0]])
STUDENT = side([[-1, 0, 0, 1, 2, -1], [-1, 0, 0, 0]])


def test_aligned_positions_have_read_the_same_bytes():
    pairs = aligned_positions(TEACHER, STUDENT, 3)
    assert pairs.teacher.tolist() == [0, 1, 3, 5 + 0]
    assert pairs.student.tolist() == [0, 2, 3, 6 + 0]
    assert pairs.sequence.tolist() == [0, 0, 0, 1]


def test_paired_positions_count_tokens_up_to_the_shorter_side():
    pairs = paired_positions(TEACHER, STUDENT)
    assert pairs.teacher.tolist() == [0, 1, 2, 3, 5]
    assert pairs.student.tolist() == [0, 1, 2, 3, 6]
    assert pairs.sequence.tolist() == [0, 0, 0, 0, 1]


def test_texts_of_one_row_are_paired_as_if_each_had_its_own():
    pairs = paired_positions(in_one_row(TEACHER), in_one_row(STUDENT))
    assert pairs.teacher.tolist() == [0, 1, 2, 3, 5]
    assert pairs.student.tolist() == [0, 1, 2, 3, 6]
    assert pairs.sequence.tolist() == [0, 0, 0, 0, 1]


def in_one_row(texts: SimpleNamespace) -> SimpleNamespace:
    """Texts one after the other, with the padding of all but the last between them."""
    return SimpleNamespace(**{name: each.flatten()[None] for name, each in vars(texts).items()})


@given(st.lists(st.tuples(st.lists(st.booleans(), max_size=8), st.lists(st.booleans(), max_size=8)), min_size=1))
def test_paired_positions_are_those_of_a_loop_over_texts(texts):
    sides = [side([[-1] + [0 if scored else -1 for scored in text[i]] for text in texts]) for i in range(2)]
    expected = []
    for number in range(len(texts)):
        tokens = [s.scored[number].nonzero().squeeze(1).tolist() for s in sides]
        expected += [
            (number * sides[0].chunk.shape[1] + first - 1, number * sides[1].chunk.shape[1] + second - 1, number)
            for first, second in zip(*tokens, strict=False)
        ]
    pairs = paired_positions(*sides)
    assert list(zip(*(each.tolist() for each in pairs), strict=True)) == expected
