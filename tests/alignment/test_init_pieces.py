"""Weights over pieces: the numbers of embedding_init.md §4.6, a float64 oracle, what every initializer must keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.byte_view import ByteView
from alignment.initializers.pieces import (
    Weigh,
    by_length,
    character_counts,
    equal,
    geometric,
    linear,
    piece_rows,
)
from alignment.vocab import Match, VocabAlignment

ROWS = torch.tensor([[1.0, 2.0, 3.0], [3.0, 0.0, 1.0], [5.0, 4.0, -1.0]])
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SCHEMES = {
    "equal": equal,
    "geometric": geometric(0.5, "first"),
    "exponential": geometric(math.exp(-2), "last"),
    "linear": linear("last"),
    "first": geometric(0.0, "first"),
    "last": geometric(0.0, "last"),
    "lengths": by_length(np.arange(1, 10)),
}


def alignment_of(pieces: list[list[int]], source_size: int) -> VocabAlignment:
    """An alignment with the given source ids for each target id."""
    kinds = [Match.NONE if not row else Match.BYTES if len(row) == 1 else Match.PIECES for row in pieces]
    return VocabAlignment(
        match=np.array(kinds, dtype=np.int8),
        offsets=np.cumsum([0, *map(len, pieces)], dtype=np.int64),
        pieces=np.array([piece for row in pieces for piece in row], dtype=np.int32),
        source_size=source_size,
        source_fingerprint="source",
        target_fingerprint="target",
    )


VOCABULARIES = st.integers(1, 9).flatmap(
    lambda size: st.tuples(st.just(size), st.lists(st.lists(st.integers(0, size - 1), max_size=6), min_size=1))
)


@pytest.mark.parametrize(
    ("weigh", "expected"),
    [
        (equal, [3, 2, 1]),
        (linear("first"), [2.333333, 1.666667, 1.666667]),
        (linear("last"), [3.666667, 2.333333, 0.333333]),
        (geometric(0.0, "first"), [1, 2, 3]),
        (geometric(0.0, "last"), [5, 4, -1]),
        (geometric(0.5, "first"), [2.142857, 1.714286, 1.857143]),
        (geometric(math.exp(-2), "last"), [4.701874, 3.499006, -0.701874]),
        (geometric(math.exp(-2), "first"), [1.298126, 1.797132, 2.701874]),
        (by_length(np.array([2, 1, 5])), [3.75, 3, 0.25]),
        (by_length(np.array([7, 3, 2])), [2.166667, 1.833333, 1.833333]),
    ],
    ids=["mean", "descending", "ascending", "first", "last", "geometric", "exp in", "exp out", "characters", "lengths"],
)
def test_three_pieces_worked_by_hand(weigh: Weigh, expected: list[float]) -> None:
    made = piece_rows(alignment_of([[0, 1, 2]], 3), torch.tensor([0]), weigh).combine(ROWS)
    torch.testing.assert_close(made, torch.tensor([expected], dtype=torch.float32), rtol=1e-5, atol=1e-5)


def test_a_piece_that_occurs_twice_counts_twice() -> None:
    made = piece_rows(alignment_of([[0, 0, 2]], 3), torch.tensor([0])).combine(ROWS)
    torch.testing.assert_close(made, ((2 * ROWS[0] + ROWS[2]) / 3)[None])


@given(dtype=st.sampled_from(DTYPES), vocabularies=VOCABULARIES, seed=st.integers(0, 2**16))
def test_means_agree_with_float64(dtype: torch.dtype, vocabularies: tuple[int, list[list[int]]], seed: int) -> None:
    source_size, pieces = vocabularies
    rows = torch.randn(source_size, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    made = piece_rows(alignment_of(pieces, source_size), torch.arange(len(pieces))).combine(rows)
    expected = [rows.double()[row].mean(dim=0) if row else torch.zeros(5).double() for row in pieces]
    torch.testing.assert_close(made.double(), torch.stack(expected), rtol=1e-6, atol=1e-6)


@given(name=st.sampled_from(sorted(SCHEMES)), vocabularies=VOCABULARIES, seed=st.integers(0, 2**16))
def test_every_row_lies_between_its_pieces_and_a_single_piece_is_copied_bit_by_bit(
    name: str, vocabularies: tuple[int, list[list[int]]], seed: int
) -> None:
    source_size, pieces = vocabularies
    rows = torch.randn(source_size, 4, generator=torch.Generator().manual_seed(seed))
    sparse = piece_rows(alignment_of(pieces, source_size), torch.arange(len(pieces)), SCHEMES[name])
    made = sparse.combine(rows)
    for token, row in enumerate(pieces):
        if not row:
            assert (sparse.indices[token] == -1).all()
            continue
        assert (made[token] >= rows[row].amin(dim=0) - 1e-6).all()
        assert (made[token] <= rows[row].amax(dim=0) + 1e-6).all()
        if len(row) == 1:
            assert torch.equal(made[token], rows[row[0]])


@pytest.mark.parametrize("name", SCHEMES)
def test_a_row_depends_neither_on_its_block_nor_on_its_place(name: str) -> None:
    pieces = [[0, 1, 2, 3, 4, 5, 6], [3], [], [8, 8], [7, 0, 1]]
    alignment, rows = alignment_of(pieces, 9), torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    whole = piece_rows(alignment, torch.arange(5), SCHEMES[name]).combine(rows)
    for order in ([4, 2, 0, 3, 1], [1], [2], []):
        part = piece_rows(alignment, torch.tensor(order, dtype=torch.int64), SCHEMES[name]).combine(rows)
        assert torch.equal(part, whole[order])


def test_an_alignment_in_which_nothing_corresponds_gives_no_weights() -> None:
    sparse = piece_rows(alignment_of([[], []], 3), torch.arange(2), by_length(np.array([2, 1, 5])))
    assert sparse.indices.tolist() == [[-1], [-1]]


def test_characters_are_those_of_which_a_token_has_a_byte() -> None:
    tokens = [b"the", b" the", " é日".encode(), b"\xe6\x97", b"\xa5", b"\xa5xy", b"", None, b"\xc3\xa9\xc3"]
    assert character_counts(ByteView.from_token_bytes(tokens)).tolist() == [3, 4, 3, 1, 1, 3, 1, 1, 2]
