"""Constant rows and draws: moments worked by hand and by numpy, and draws that belong to their keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignment.initializers.simple import (
    copied_rows,
    independent_gaussian,
    multivariate_gaussian,
    standard_normals,
    zero_rows,
)

# embedding_init.md §1.1
WORKED = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 4.0], [3.0, 4.0]])
KEYS = np.random.default_rng(0).integers(0, 2**63, size=4000, dtype=np.uint64)


def test_zeros_and_copies() -> None:
    assert torch.equal(zero_rows(2).combine(WORKED), torch.zeros(2, 2))
    assert torch.equal(copied_rows(3, 2).combine(WORKED), WORKED[[3, 3]])


def test_moments_worked_by_hand_are_those_of_the_population() -> None:
    independent = independent_gaussian(WORKED)
    assert independent.mean.tolist() == [2, 2]
    assert independent.factor.tolist() == [1, 2]
    together = multivariate_gaussian(WORKED, covariance_scale=1.0, ridge=1e-12)
    torch.testing.assert_close(together.factor @ together.factor.T, torch.diag(torch.tensor([1.0, 4.0])).double())


def test_the_covariance_is_numpys_scaled_and_a_little_wider() -> None:
    rows = torch.randn(9000, 5, generator=torch.Generator().manual_seed(1)) @ torch.rand(5, 5) + 3
    made = multivariate_gaussian(rows.bfloat16(), covariance_scale=0.01, ridge=1e-3)
    expected = 0.01 * np.cov(rows.bfloat16().double().numpy(), rowvar=False, bias=True)
    expected += 1e-3 * np.trace(expected) / 5 * np.eye(5)
    np.testing.assert_allclose((made.factor @ made.factor.T).numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(made.mean.numpy(), rows.bfloat16().double().numpy().mean(axis=0), rtol=1e-12)


def test_fewer_rows_than_dimensions_and_rows_that_are_all_alike_can_be_drawn_from() -> None:
    few = multivariate_gaussian(torch.randn(3, 8), covariance_scale=1.0, ridge=1e-6)
    assert few.rows(standard_normals(KEYS[:4], seed=1, name="w", width=8)).isfinite().all()
    alike = multivariate_gaussian(torch.full((5, 3), 2.0), covariance_scale=1.0, ridge=1e-6)
    assert torch.equal(alike.rows(torch.ones(2, 3).double()), torch.full((2, 3), 2.0))


@pytest.mark.parametrize("independent", [True, False])
def test_draws_have_the_moments_of_the_rows(independent: bool) -> None:
    correlated = WORKED.repeat(2, 1) + torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).repeat_interleave(4, 0)
    gaussian = (
        independent_gaussian(correlated)
        if independent
        else multivariate_gaussian(correlated, covariance_scale=1.0, ridge=1e-9)
    )
    drawn = gaussian.rows(standard_normals(KEYS, seed=3, name="w", width=2))
    covariance = torch.tensor([[2.0, 0.0 if independent else 1.0], [0.0 if independent else 1.0, 5.0]])
    # Four standard errors of 4000 draws.
    torch.testing.assert_close(drawn.mean(dim=0), torch.tensor([2.0, 2.0]), rtol=0, atol=4 * (5 / 4000) ** 0.5)
    torch.testing.assert_close(drawn.T.cov(correction=0), covariance, rtol=0, atol=4 * 5 * (2 / 4000) ** 0.5)


def test_draws_are_a_function_of_key_seed_and_name() -> None:
    drawn = standard_normals(KEYS[:6], seed=3, name="w", width=4)
    assert torch.equal(standard_normals(KEYS[[5, 2]], seed=3, name="w", width=4), drawn[[5, 2]])
    assert len(drawn.unique()) == drawn.numel()
    for other in ({"seed": 4, "name": "w"}, {"seed": 3, "name": "v"}):
        assert not (standard_normals(KEYS[:6], width=4, **other) == drawn).any()


def test_keys_that_differ_in_their_last_bit_draw_differently() -> None:
    keys = np.array([2**63 + 2**40, 2**63 + 2**40 + 1, 2**40, 2**40 + 1, 2**64 - 1], dtype=np.uint64)
    for seed in range(8):  # the tensor's key, which the seed makes, is above 2^63 or below
        assert len(standard_normals(keys, seed=seed, name="w", width=3).unique()) == 15
