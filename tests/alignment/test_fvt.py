"""Fast Vocabulary Transfer: hand-worked rows, a float64 oracle, and the properties every initialiser must have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.initializers import INITIALIZERS, load_initializer
from alignment.initializers.fvt import fvt
from alignment.vocab import AlignmentError, Match, VocabAlignment


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


def oracle(rows: torch.Tensor, pieces: list[list[int]], source_size: int) -> torch.Tensor:
    precise = rows[:source_size].double()
    return torch.stack([precise[row].mean(dim=0) if row else precise.mean(dim=0) for row in pieces])


VOCABULARIES = st.integers(1, 9).flatmap(
    lambda size: st.tuples(st.just(size), st.lists(st.lists(st.integers(0, size - 1), max_size=6), min_size=1))
)


def test_rows_worked_by_hand() -> None:
    # embedding_init.md §4.6: the mean of three pieces, and a repeated piece counts twice.
    rows = torch.tensor([[1.0, 2.0, 3.0], [3.0, 0.0, 1.0], [5.0, 4.0, -1.0]])
    made = fvt(rows, alignment_of([[0, 1, 2], [1], [0, 0, 2], []], source_size=3))
    expected = [[3.0, 2.0, 1.0], [3.0, 0.0, 1.0], [7 / 3, 8 / 3, 5 / 3], [3.0, 2.0, 1.0]]
    torch.testing.assert_close(made, torch.tensor(expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@given(vocabularies=VOCABULARIES, seed=st.integers(0, 2**16))
def test_means_agree_with_float64_and_copies_are_exact(
    dtype: torch.dtype, vocabularies: tuple[int, list[list[int]]], seed: int
) -> None:
    source_size, pieces = vocabularies
    rows = torch.randn(source_size + 2, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    made = fvt(rows, alignment_of(pieces, source_size))
    assert made.dtype == dtype
    # One rounding to the rows' dtype, and float32's own error where it accumulates.
    tolerance = torch.finfo(dtype).eps / 2 + (torch.finfo(torch.float32).eps * 4 if dtype != torch.float64 else 1e-15)
    torch.testing.assert_close(
        made.double(), oracle(rows, pieces, source_size), rtol=tolerance, atol=torch.finfo(torch.float32).eps * 16
    )
    for token, row in enumerate(pieces):
        if len(row) == 1:
            assert torch.equal(made[token], rows[row[0]])


@given(vocabularies=VOCABULARIES, seed=st.integers(0, 2**16))
def test_every_row_lies_between_the_rows_it_is_made_of(vocabularies: tuple[int, list[list[int]]], seed: int) -> None:
    source_size, pieces = vocabularies
    rows = torch.randn(source_size, 4, generator=torch.Generator().manual_seed(seed))
    made = fvt(rows, alignment_of(pieces, source_size))
    for token, row in enumerate(pieces):
        parents = rows[row] if row else rows
        assert (made[token] >= parents.amin(dim=0) - 1e-6).all()
        assert (made[token] <= parents.amax(dim=0) + 1e-6).all()


def test_the_same_vocabulary_gives_the_same_rows_and_permuted_ids_permuted_rows() -> None:
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(fvt(rows, alignment_of([[token] for token in range(20)], 20)), rows)
    assert torch.equal(fvt(rows, alignment_of([[token] for token in order.tolist()], 20)), rows[order])


def test_padding_rows_of_the_source_do_not_enter_the_mean() -> None:
    rows = torch.tensor([[1.0], [3.0], [1000.0]])
    assert fvt(rows, alignment_of([[]], source_size=2)).item() == 2.0


def test_a_vocabulary_without_any_counterpart_gets_the_mean_row() -> None:
    rows = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(fvt(rows, alignment_of([[], [], []], 2)), torch.tensor([[2.0, 2.0]] * 3))


def test_fewer_rows_than_source_ids_is_an_error() -> None:
    with pytest.raises(AlignmentError, match="ids up to 4, the matrix has only 4 rows"):
        fvt(torch.zeros(4, 2), alignment_of([[0]], source_size=5))


@pytest.mark.parametrize("name", INITIALIZERS)
def test_every_registered_initializer_loads(name: str) -> None:
    rows = torch.eye(3)
    assert torch.equal(load_initializer(name)(rows, alignment_of([[2], [0]], 3)), rows[[2, 0]])
