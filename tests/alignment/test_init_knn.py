"""Nearest anchors against brute force in float64; weights against numpy's solvers and the numbers of §4.5 and §4.3."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.initializers import knn
from alignment.initializers.knn import (
    Metric,
    NearestAnchors,
    barycentric_weights,
    distance_weights,
    least_squares_weights,
)

POINTS = torch.tensor([[1.0, 0.0], [4.0, 0.0], [0.0, 3.0], [10.0, 10.0]])
QUERY = torch.tensor([[1.0, 0.5]])


def drawn(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def brute_force(anchors: torch.Tensor, queries: torch.Tensor, k: int, metric: Metric) -> np.ndarray:
    a, q = anchors.double().numpy(), queries.double().numpy()
    if metric == "euclidean":
        distances = np.linalg.norm(a[None] - q[:, None], axis=2)
    else:
        a, q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, q))
        distances = 1 - q @ a.T
    return np.argsort(distances.astype(np.float32), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(("anchors", "width", "k"), [(500, 24, 7), (9, 3, 9), (40, 1, 5)])
def test_the_nearest_are_those_of_brute_force(
    dtype: torch.dtype, metric: Metric, anchors: int, width: int, k: int
) -> None:
    points, queries = drawn(anchors, width).to(dtype), drawn(60, width, seed=1).to(dtype)
    found, distances = NearestAnchors(points, metric).search(queries, k)
    assert np.array_equal(found.numpy(), brute_force(points, queries, k, metric))
    assert (distances.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_of_equally_near_anchors_the_lowest_are_taken_however_many_there_are(metric: Metric) -> None:
    points = drawn(6, 4).repeat(60, 1)
    queries = drawn(10, 4, seed=1)
    found, _ = NearestAnchors(points, metric).search(queries, 5)
    assert np.array_equal(found.numpy(), brute_force(points, queries, 5, metric))
    assert (found.diff(dim=1) == 6).all()


def test_points_far_from_the_origin_are_told_apart() -> None:
    # |a|^2 - 2 a.q loses these differences in float32.
    points = 1000 + 0.01 * drawn(300, 4)
    queries = points[::7] + 0.001
    found, _ = NearestAnchors(points, "euclidean").search(queries, 3)
    assert np.array_equal(found.numpy(), brute_force(points, queries, 3, "euclidean"))


def test_an_anchor_of_enormous_length_does_not_show() -> None:
    points, queries = drawn(300, 8), drawn(20, 8, seed=1)
    points[7] *= 1e4
    found, _ = NearestAnchors(points, "euclidean").search(queries, 4)
    assert np.array_equal(found.numpy(), brute_force(points, queries, 4, "euclidean"))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_blocks_do_not_show(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    search = NearestAnchors(drawn(200, 8).bfloat16(), metric)
    queries = drawn(50, 8, seed=1)
    found, distances = search.search(queries, 6)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(knn, "_BLOCK_ELEMENTS", 700)
    again, distances_again = search.search(queries[order], 6)
    assert torch.equal(again, found[order])
    assert torch.equal(distances_again, distances[order])


def test_two_neighbours_worked_by_hand() -> None:
    found, distances = NearestAnchors(POINTS, "euclidean").search(QUERY, 2)
    assert found.tolist() == [[0, 2]]
    neighbours = POINTS[found]
    for weights, expected in (
        (distance_weights(distances, "euclidean"), [0.843387, 0.156613]),
        (barycentric_weights(neighbours, QUERY), [0.85, 0.15]),
        (least_squares_weights(neighbours, QUERY), [1, 0.166667]),
    ):
        torch.testing.assert_close(weights, torch.tensor([expected]).double(), rtol=1e-5, atol=1e-5)
    cosines = distance_weights(torch.tensor([[0.2, 0.4]]), "cosine")
    torch.testing.assert_close(cosines, torch.tensor([[0.571429, 0.428571]]).double(), rtol=1e-5, atol=1e-5)


def test_weights_by_distance_are_never_negative_and_an_anchor_in_the_same_place_takes_all() -> None:
    weights = distance_weights(torch.tensor([[0.5, 1.0, 1.6], [1.0, 1.2, 2.0]]), "cosine")
    assert weights.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert distance_weights(torch.tensor([[0.0, 1.0]]), "euclidean")[0, 0] > 0.999998


@given(seed=st.integers(0, 2**16), k=st.integers(1, 9), width=st.integers(1, 6))
def test_least_squares_are_numpys_also_where_there_are_many_solutions(seed: int, k: int, width: int) -> None:
    points, queries = drawn(3 * k, width, seed).reshape(3, k, width), drawn(3, width, seed + 1)
    points[0, 0] = 0  # torch's default solver on the CPU then answers with zeros
    points[1] = points[1, :1]  # rank 1
    made = least_squares_weights(points, queries).numpy()
    for row in range(3):
        expected = np.linalg.lstsq(points[row].double().numpy().T, queries[row].double().numpy(), rcond=1e-6)[0]
        np.testing.assert_allclose(made[row], expected, rtol=1e-4, atol=1e-6 * max(1, np.abs(expected).max()))


@given(seed=st.integers(0, 2**16), k=st.integers(1, 9), width=st.integers(1, 6))
def test_barycentric_weights_solve_the_kkt_system_also_where_it_is_singular(seed: int, k: int, width: int) -> None:
    points, queries = drawn(2 * k, width, seed).reshape(2, k, width), drawn(2, width, seed + 1)
    points[1] = points[1, :1]
    made = barycentric_weights(points, queries).numpy()
    np.testing.assert_allclose(made.sum(axis=1), 1, rtol=1e-6)
    for row in range(2):
        P, t = points[row].double().numpy(), queries[row].double().numpy()
        system = np.block([[P @ P.T, np.ones((k, 1))], [np.ones((1, k)), np.zeros((1, 1))]])
        expected = (np.linalg.pinv(system, rcond=1e-9) @ np.append(P @ t, 1))[:k]
        np.testing.assert_allclose(made[row], expected, rtol=1e-3, atol=1e-5 * max(1, np.abs(expected).max()))
