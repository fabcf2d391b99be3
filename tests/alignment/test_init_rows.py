"""Sparse rows, anchors' training and adjustments of new rows against literal arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.initializers.post import adjust
from alignment.initializers.rows import RowBlock, SparseRows, mean_row
from alignment.initializers.trained import undertrained


@given(st.data())
def test_sparse_rows_are_weighted_sums_of_old_rows(data):
    rows, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    indices = torch.tensor([[data.draw(st.integers(-1, 6)) for _ in range(width)] for _ in range(rows)])
    weights = torch.rand(rows, width, generator=torch.Generator().manual_seed(3)) - 0.5
    matrix = torch.randn(7, 3, generator=torch.Generator().manual_seed(4))
    expected = np.zeros((rows, 3))
    for row in range(rows):
        for place in range(width):
            if indices[row, place] >= 0:
                expected[row] += float(weights[row, place]) * matrix[indices[row, place]].double().numpy()
    found = SparseRows(indices, weights).combine(matrix)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_padding_reads_no_row_and_precision_is_the_better_of_the_two():
    matrix = torch.full((2, 3), float("nan"), dtype=torch.bfloat16)
    empty = SparseRows(torch.full((4, 2), -1), torch.rand(4, 2))
    assert torch.equal(empty.combine(matrix), torch.zeros(4, 3))
    one = SparseRows(torch.tensor([[0]]), torch.ones(1, 1, dtype=torch.float64))
    assert one.combine(torch.ones(1, 3)).dtype == torch.float64


def test_a_block_of_rows_is_its_own_value():
    rows = torch.rand(2, 3)
    assert RowBlock(rows, torch.ones(2, dtype=torch.bool)).values(torch.zeros(9, 3)) is rows


def test_rows_that_point_the_way_of_unused_ones_count_as_untrained():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(1000, 32, generator=generator)
    direction = torch.randn(32, generator=generator)
    unused = torch.zeros(1000, dtype=torch.bool)
    unused[990:] = True
    rows[990:] = direction + 0.01 * torch.randn(10, 32, generator=generator)
    rows[5] = 0.5 * direction  # never used either, though nothing says so
    rows[6] = 0
    rows[7, 0] = float("nan")
    assert undertrained(rows.bfloat16(), unused).nonzero().flatten().tolist() == [5, 6, 7, *range(990, 1000)]
    assert undertrained(rows, torch.zeros(1000, dtype=torch.bool)).nonzero().flatten().tolist() == [6, 7]


def test_adjustments_do_what_they_say_one_by_one():
    generator = torch.Generator().manual_seed(2)
    rows, old = torch.randn(50, 8, generator=generator) + 3, torch.randn(400, 8, generator=generator)
    keys = np.arange(50, dtype=np.uint64)
    assert torch.equal(adjust(rows, old, keys), rows)
    torch.testing.assert_close(adjust(rows, old, keys, centre=True).mean(dim=0), old.mean(dim=0))
    assert torch.equal(adjust(rows, old, keys, scale=0.5), rows * 0.5)
    shortened = adjust(rows, old, keys, longest=0.5).norm(dim=1)
    limit = float(np.quantile(old.norm(dim=1).numpy(), 0.5, method="nearest"))
    assert shortened.max() == pytest.approx(limit)
    assert (shortened <= rows.norm(dim=1) + 1e-6).all()


def test_noise_has_the_old_rows_scale_and_belongs_to_the_token():
    old = torch.randn(400, 2000, generator=torch.Generator().manual_seed(3)) * 0.7
    rows = torch.zeros(6, 2000)
    keys = np.array([9, 2**64 - 1, 4, 11, 3, 8], dtype=np.uint64)
    noisy = adjust(rows, old, keys, noise=0.1, seed=1)
    assert float(noisy.std()) == pytest.approx(0.07, rel=0.03)
    assert torch.equal(adjust(rows, old, keys[::-1].copy(), noise=0.1, seed=1).flip(0), noisy)
    assert not torch.equal(adjust(rows, old, keys, noise=0.1, seed=2), noisy)


def test_the_mean_row_is_exact_over_many_blocks_of_bfloat16() -> None:
    matrix = torch.randn(5000, 2048, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    torch.testing.assert_close(mean_row(matrix), matrix.double().mean(dim=0), rtol=1e-12, atol=1e-15)
