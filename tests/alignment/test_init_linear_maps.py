"""Maps between two spaces: scipy's and scikit-learn's solutions, a known rotation with noise, widths that differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge

from alignment.initializers.linear_maps import Scale, moments, procrustes_map, ridge_map


def drawn(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int) -> torch.Tensor:
    return torch.linalg.qr(drawn(width, width, seed=9))[0]


def relative_error(made: torch.Tensor, expected: torch.Tensor) -> float:
    centred = expected - expected.mean(dim=0)
    return float((made - expected).norm() / centred.norm())


@pytest.mark.parametrize(("donor_width", "width"), [(7, 7), (7, 4), (4, 7)])
def test_procrustes_is_scipys_with_the_narrower_space_padded_by_zeros(donor_width: int, width: int) -> None:
    donor, student = (
        drawn(50, donor_width) + 2,
        drawn(50, width, seed=1) @ torch.diag(torch.arange(1.0, width + 1)).double(),
    )
    X, Y = (side - side.mean(dim=0) for side in (donor, student))
    widest = max(donor_width, width)
    padded = [np.pad(side.numpy(), ((0, 0), (0, widest - side.shape[1]))) for side in (X, Y)]
    expected = orthogonal_procrustes(*padded)[0][:donor_width, :width]
    made = procrustes_map(moments(donor, student), "norm").matrix
    np.testing.assert_allclose(made / made.norm(), expected / np.linalg.norm(expected), atol=1e-9)


def test_a_rotation_with_noise_is_found_and_its_transpose_is_not_it() -> None:
    # landmark_pca of mergekit-tokensurgeon applies U V' of the product taken the other way round (§1.4).
    donor = drawn(400, 32) @ torch.diag(torch.logspace(0, -0.5, 32).double())
    clean = donor @ rotation(32) + 3
    noise = drawn(400, 32, seed=2)
    student = clean + 0.1 * (clean - clean.mean(dim=0)).norm() / noise.norm() * noise
    of = moments(donor, student)
    error = relative_error(procrustes_map(of, "least_squares")(donor), student)
    # 0.1 of the clean rows' norm, less the share of the noise that the rotation's 496 free numbers fit.
    assert 0.08 < error < 0.1 / 1.1**0.5 * 1.05
    U, _, Vh = torch.linalg.svd((student - of.student_mean).T @ (donor - of.donor_mean))
    transposed = (donor - of.donor_mean) @ (U @ Vh) + of.student_mean
    assert relative_error(transposed, student) > 5 * error


def test_an_exact_rotation_maps_rows_that_were_no_anchors() -> None:
    donor, others = drawn(40, 6), drawn(5, 6, seed=3)
    student = 2.5 * donor @ rotation(6) - 1
    for scale in ("least_squares", "norm"):
        made = procrustes_map(moments(donor, student), scale)
        torch.testing.assert_close(made(others).double(), 2.5 * others @ rotation(6) - 1, rtol=1e-5, atol=1e-5)
        assert made.relative_error < 1e-6


def test_a_wider_student_keeps_all_lengths_but_for_the_factor() -> None:
    donor, student = drawn(60, 4), drawn(60, 9, seed=1)
    matrix = procrustes_map(moments(donor, student), "norm").matrix
    gram = matrix @ matrix.T
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(4).double())


@pytest.mark.parametrize(("scale", "at_best"), [("norm", False), ("least_squares", True)])
def test_the_factor_keeps_the_norm_or_has_the_least_error(scale: Scale, at_best: bool) -> None:
    donor, student = drawn(80, 6), drawn(80, 5, seed=1)
    made = procrustes_map(moments(donor, student), scale)
    mapped = made(donor).double() - made.student_mean
    Y = student - made.student_mean
    assert made.relative_error == pytest.approx(float((mapped - Y).norm() / Y.norm()), rel=1e-5)
    best = float((mapped * Y).sum() / mapped.square().sum())
    assert (best == pytest.approx(1, rel=1e-6)) == at_best
    assert (float(mapped.norm() / Y.norm()) == pytest.approx(1, rel=1e-6)) != at_best


def test_directions_that_the_anchors_do_not_span_go_to_zero() -> None:
    basis = rotation(8)
    donor = drawn(5, 2) @ basis[:2]
    student = drawn(5, 6, seed=1)
    made = procrustes_map(moments(donor, student), "norm")
    unseen = made(made.donor_mean + 3 * basis[5:6])
    torch.testing.assert_close(unseen, made.student_mean[None].float())


def test_ridge_is_scikit_learns() -> None:
    donor, student = drawn(100, 6) + 1, drawn(100, 4, seed=1) - 2
    X = donor - donor.mean(dim=0)
    oracle = Ridge(alpha=0.3 * float(X.square().sum()) / 6).fit(donor.numpy(), student.numpy())
    others = drawn(7, 6, seed=4)
    made = ridge_map(moments(donor, student), 0.3)
    np.testing.assert_allclose(made(others).numpy(), oracle.predict(others.numpy()), rtol=1e-5, atol=1e-6)
    error = np.linalg.norm(oracle.predict(donor.numpy()) - student.numpy()) / np.linalg.norm(student - student.mean(0))
    assert made.relative_error == pytest.approx(error, rel=1e-6)


def test_a_general_linear_relation_is_for_ridge_and_not_for_a_rotation() -> None:
    donor, others = drawn(200, 8), drawn(20, 8, seed=5)
    relation = drawn(8, 8, seed=6)
    of = moments(donor, donor @ relation)
    assert relative_error(ridge_map(of, 1e-9)(others), others @ relation) < 1e-4
    assert relative_error(procrustes_map(of, "least_squares")(others), others @ relation) > 0.3


def test_fewer_anchors_than_dimensions_and_anchors_that_are_all_alike_give_finite_rows() -> None:
    few = ridge_map(moments(drawn(3, 10), drawn(3, 4, seed=1)), 0.01)
    assert few(drawn(2, 10, seed=2)).isfinite().all()
    alike = moments(torch.ones(4, 3), drawn(4, 2))
    for made in (ridge_map(alike, 0.01), procrustes_map(alike, "norm"), procrustes_map(alike, "least_squares")):
        torch.testing.assert_close(made(drawn(2, 3)), alike.student_mean.float().expand(2, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_low_precision_are_taken_as_they_are(dtype: torch.dtype) -> None:
    donor, student = drawn(60, 5).to(dtype), drawn(60, 6, seed=1).to(dtype)
    for fit in (lambda of: procrustes_map(of, "norm"), lambda of: ridge_map(of, 0.01)):
        low, exact = fit(moments(donor, student)), fit(moments(donor.double(), student.double()))
        torch.testing.assert_close(low.matrix, exact.matrix, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(low(donor), exact(donor.double()))
