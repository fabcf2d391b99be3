"""Rows brought to the length of others: the specification's numbers, and what must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.initializers.norms import median_norms, rescale, row_norms

ROWS = torch.tensor([[3.0, 4.0], [0.0, 10.0], [6.0, 8.0]], dtype=torch.float64)
NO_GROUP = np.full(3, -1)


def test_the_worked_example_of_the_specification():
    mean = ROWS.mean(dim=0, keepdim=True)
    assert float(mean.norm()) == pytest.approx(7.923243, abs=1e-5)
    medians = median_norms(row_norms(ROWS), np.ones(3, dtype=bool), NO_GROUP, 1)
    assert medians == pytest.approx(10)
    calibrated = rescale(mean, torch.tensor(medians[:1]))
    torch.testing.assert_close(calibrated, torch.tensor([[3.786328, 9.255470]], dtype=torch.float64), atol=1e-5, rtol=0)


def test_groups_have_medians_of_their_own_unless_they_are_small():
    norms = np.array([1.0, 2.0, 9.0, 10.0, 30.0, 100.0, 5.0])
    known = np.array([True, True, True, True, True, True, False])
    group = np.array([0, 0, 1, 1, 1, 2, 1])
    medians = median_norms(norms, known, group, 2)
    everywhere = (9.0 + 10.0) / 2
    assert medians.tolist() == [1.5, 1.5, 10.0, 10.0, 10.0, everywhere, 10.0]
    assert median_norms(norms, known, group, 4).tolist() == [everywhere] * 7


def test_rows_that_are_zero_or_not_known_are_no_example():
    norms = np.array([0.0, 0.0, 0.0, 2.0, 4.0, 50.0])
    known = np.array([True, True, True, True, True, False])
    assert median_norms(norms, known, np.zeros(6, dtype=int), 1).tolist() == [3.0] * 6
    with pytest.raises(ValueError, match="no row of known norm"):
        median_norms(norms[:3], known[:3], NO_GROUP, 1)


def test_norms_of_many_half_precision_rows():
    rows = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = np.linalg.norm(rows.double().numpy(), axis=1)
    assert row_norms(rows) == pytest.approx(expected, rel=1e-12)


@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_rescaling_sets_the_length_and_keeps_the_direction(seed, dtype):
    draw = torch.Generator().manual_seed(seed)
    rows = (torch.randn(7, 5, generator=draw) * 10 ** torch.randn(7, 1, generator=draw)).to(dtype)
    rows[2] = 0
    wanted = torch.rand(7, generator=draw, dtype=torch.float64) + 0.1
    scaled = rescale(rows, wanted)
    assert scaled.dtype == dtype
    assert (scaled[2] == 0).all()
    tolerance = {"rtol": 2e-2 if dtype == torch.bfloat16 else 1e-5, "atol": 0}
    others = torch.arange(7) != 2
    torch.testing.assert_close(scaled.double().norm(dim=1)[others], wanted[others], **tolerance)
    cosine = torch.nn.functional.cosine_similarity(scaled.double(), rows.double())[others]
    assert (cosine > 1 - 1e-4).all()
    order = torch.randperm(7, generator=draw)
    assert torch.equal(rescale(rows[order], wanted[order]), scaled[order])
    assert torch.equal(torch.cat([rescale(rows[:3], wanted[:3]), rescale(rows[3:], wanted[3:])]), scaled)
