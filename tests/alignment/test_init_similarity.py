"""Rows made of those of similar tokens: against sorting, dense formulas in float64 and the specification's numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alignment.initializers.factorisation import leading_directions
from alignment.initializers.similarity import (
    Candidates,
    ProportionalRows,
    SparsemaxSupport,
    TopK,
    similar_rows,
    softmax,
    sparsemax,
)

ROWS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
QUERY = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
METHODS = {"focus": (SparsemaxSupport(), sparsemax), "wechsel": (TopK(10), softmax(0.1))}


def three_candidates() -> Candidates:
    """Tokens 0, 1 and 2 whose cosines to QUERY are .6, .8 and -.6 (embedding_init.md §4.3)."""
    vectors = torch.zeros(3, 4, dtype=torch.float64)
    for index, cosine in enumerate((0.6, 0.8, -0.6)):
        vectors[index, 0], vectors[index, index + 1] = cosine, math.sqrt(1 - cosine**2)
    return Candidates.from_vectors(torch.arange(3), 3 * vectors)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparsemax_by_bisection(values: Tensor) -> Tensor:
    """float64 [K]: the threshold found as the root of sum(max(values - tau, 0)) = 1, which falls as tau rises."""
    low, high = float(values.min()) - 1, float(values.max())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (values - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (values - low).clamp(min=0)


@pytest.mark.parametrize(
    ("select", "weigh", "weights", "row"),
    [
        (SparsemaxSupport(), sparsemax, {0: 0.4, 1: 0.6}, (0.4, 0.6)),
        (TopK(2), softmax(0.1), {0: 0.119203, 1: 0.880797}, (0.119203, 0.880797)),
        (TopK(10), softmax(0.1), {0: 0.119203, 1: 0.880796, 2: 7.3e-7}, (0.119206, 0.880800)),
    ],
)
def test_worked_example(select, weigh, weights, row):
    made = similar_rows(QUERY, three_candidates(), select, weigh)
    found = dict(zip(made.indices[0].tolist(), made.weights[0].tolist(), strict=True))
    assert found == pytest.approx(weights, abs=1e-6)
    assert made.combine(ROWS)[0].tolist() == pytest.approx(row, abs=1e-5)


def test_worked_example_of_proportional_rows():
    rows, mean_cosine = ProportionalRows.fit(three_candidates(), ROWS).rows(QUERY)
    assert rows[0].tolist() == pytest.approx((-3, -2.75), abs=1e-5)
    assert mean_cosine.item() == pytest.approx(0.8 / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.9, 0.8, 0.2, -0.1), (0.55, 0.45, 0, 0)),
        ((0.96, 0.8, 0.6, -0.8), (0.506667, 0.346667, 0.146667, 0)),
        ((0.5, 0.5, 0.5), (1 / 3, 1 / 3, 1 / 3)),
        ((2.5, 0.1, 0.0), (1, 0, 0)),
    ],
)
def test_worked_examples_of_sparsemax(values, expected):
    assert sparsemax(torch.tensor(values, dtype=torch.float64)).tolist() == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=40))
def test_sparsemax_is_the_projection_that_bisection_finds(values):
    tensor = torch.tensor(values, dtype=torch.float64)
    assert sparsemax(tensor).tolist() == pytest.approx(sparsemax_by_bisection(tensor).tolist(), abs=1e-9)


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.003])
def test_support_of_any_size_is_exact(spread):
    """The narrower the vectors lie together the larger the support: from 100 to nearly all of the 3,000 tokens."""
    centre = random(1, 24, seed=1)
    vectors, queries = centre + spread * random(3000, 24, seed=2), centre + spread * random(5, 24, seed=3)
    made = similar_rows(queries, Candidates.from_vectors(torch.arange(3000), vectors), SparsemaxSupport(), sparsemax)
    cosines = torch.cosine_similarity(queries.double()[:, None], vectors.double()[None], dim=2)
    for row in range(len(queries)):
        expected = sparsemax_by_bisection(cosines[row])
        used = made.indices[row] >= 0
        dense = torch.zeros(3000, dtype=torch.float64)
        dense[made.indices[row][used]] = made.weights[row][used].double()
        torch.testing.assert_close(dense, expected, atol=1e-6, rtol=0)
    if spread == 0.003:
        assert int((made.indices >= 0).sum(dim=1).min()) > 1024


def test_limited_support_is_sparsemax_over_the_most_similar():
    centre = random(1, 8, seed=1)
    vectors, query = centre + 0.01 * random(500, 8, seed=2), centre
    made = similar_rows(query, Candidates.from_vectors(torch.arange(500), vectors), SparsemaxSupport(20), sparsemax)
    cosines = torch.cosine_similarity(query.double(), vectors.double(), dim=1)
    nearest = cosines.argsort(descending=True)[:20]
    assert made.indices[0].tolist() == nearest.tolist()
    torch.testing.assert_close(made.weights[0].double(), sparsemax_by_bisection(cosines[nearest]), atol=1e-6, rtol=0)


def test_nearest_tokens_are_those_of_the_dense_float64_formula():
    vectors, queries = random(700, 12, seed=4), random(9, 12, seed=5)
    made = similar_rows(queries, Candidates.from_vectors(torch.arange(700), vectors), TopK(10), softmax(0.1))
    cosines = torch.cosine_similarity(queries.double()[:, None], vectors.double()[None], dim=2)
    values, nearest = cosines.topk(10, dim=1)
    assert torch.equal(made.indices, nearest)
    torch.testing.assert_close(made.weights.double(), (values / 0.1).softmax(dim=1), atol=1e-6, rtol=0)


def test_equally_similar_tokens_go_by_id():
    vectors = torch.tensor([[1.0, 0.0]]).expand(50, 2)
    candidates = Candidates.from_vectors(torch.arange(50).flip(0) + 7, vectors)
    made = similar_rows(torch.tensor([[3.0, 0.1]]), candidates, TopK(3), softmax(0.1))
    assert made.indices.tolist() == [[7, 8, 9]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_depend_neither_on_the_block_nor_on_the_order_of_anything(method, dtype):
    vectors, queries = random(900, 33, seed=6).to(dtype), random(64, 33, seed=7).to(dtype)
    ids = torch.arange(0, 1800, 2)
    whole = similar_rows(queries, Candidates.from_vectors(ids, vectors), *METHODS[method])
    generator = torch.Generator().manual_seed(20)
    order, targets = torch.randperm(900, generator=generator), torch.randperm(64, generator=generator)
    shuffled = Candidates.from_vectors(ids[order], vectors[order])
    for block in targets.split(7):
        part = similar_rows(queries[block], shuffled, *METHODS[method])
        width = part.indices.shape[1]
        assert torch.equal(part.indices, whole.indices[block][:, :width])
        assert torch.equal(part.weights, whole.weights[block][:, :width])
        assert (whole.indices[block][:, width:] == -1).all()


@pytest.mark.parametrize("method", METHODS)
def test_rows_stay_between_the_rows_they_are_made_of(method):
    matrix = random(300, 5, seed=8)
    ids = torch.arange(10, 200)
    made = similar_rows(
        random(40, 16, seed=9), Candidates.from_vectors(ids, random(190, 16, seed=10)), *METHODS[method]
    )
    rows = made.combine(matrix)
    assert (rows <= matrix[ids].amax(dim=0) + 1e-6).all()
    assert (rows >= matrix[ids].amin(dim=0) - 1e-6).all()
    assert set(made.indices[made.indices >= 0].tolist()) <= set(ids.tolist())


@pytest.mark.parametrize("method", METHODS)
def test_zero_vectors_neither_get_nor_give_weight(method):
    vectors = random(30, 4, seed=11)
    vectors[::3] = 0
    queries = random(6, 4, seed=12)
    queries[2] = 0
    made = similar_rows(queries, Candidates.from_vectors(torch.arange(30), vectors), *METHODS[method])
    assert (made.indices[2] == -1).all()
    used = made.indices[made.indices >= 0]
    assert len(used)
    assert (used % 3 != 0).all()
    unusable = Candidates.from_vectors(torch.arange(30), torch.zeros(30, 4))
    usable = Candidates.from_vectors(torch.arange(30), vectors)
    for candidates, targets in ((unusable, queries), (usable, queries[2:3]), (usable, queries[:0])):
        nothing = similar_rows(targets, candidates, *METHODS[method])
        assert (nothing.indices == -1).all()
        assert nothing.combine(vectors).shape == (len(targets), 4)


def test_proportional_rows_are_those_of_the_dense_formula():
    vectors, queries = random(5000, 10, seed=13).abs(), random(20, 10, seed=14).abs()
    matrix = random(6000, 7, seed=15).bfloat16()
    ids = torch.randperm(6000, generator=torch.Generator().manual_seed(21))[:5000]
    rows, mean_cosine = ProportionalRows.fit(Candidates.from_vectors(ids, vectors), matrix).rows(queries)
    cosines = torch.cosine_similarity(queries.double()[:, None], vectors.double()[None], dim=2)
    weights = cosines / cosines.sum(dim=1, keepdim=True)
    torch.testing.assert_close(rows.double(), weights @ matrix[ids].double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(mean_cosine.double(), cosines.mean(dim=1), atol=1e-6, rtol=0)


def test_factorisation_reproduces_the_worked_example():
    matrix = torch.tensor([[2.0, 0, 0], [0, 1, 0], [2, 0, 1], [0, 1, 0]])
    directions = leading_directions(matrix, 2)
    coordinates = matrix.double() @ directions.T
    approximation = coordinates @ directions
    assert approximation[0].tolist() == pytest.approx((1.868243, 0, 0.496139), abs=1e-5)
    assert approximation[2].tolist() == pytest.approx((2.116313, 0, 0.562017), abs=1e-5)
    assert torch.linalg.matrix_norm(matrix - approximation).item() == pytest.approx(0.684742, abs=1e-5)
    assert coordinates.norm(dim=0).tolist() == pytest.approx((2.920810, 1.414214), abs=1e-5)


@pytest.mark.parametrize("rank", [1, 5, 9])
def test_factorisation_is_the_truncated_singular_value_decomposition(rank):
    matrix = random(40, 9, seed=16)
    directions = leading_directions(matrix, rank)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    expected = (left[:, :rank] * values[:rank]) @ right[:rank]
    torch.testing.assert_close(matrix.double() @ directions.T @ directions, expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("rank", [0, 10])
def test_factorisation_refuses_an_impossible_rank(rank):
    with pytest.raises(ValueError, match=f"width 9 cannot be given rank {rank}"):
        leading_directions(torch.zeros(4, 9), rank)


class LargestTensor(TorchDispatchMode):
    """Watches the size of everything that is computed."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("method", [*METHODS, "clp"])
def test_similarities_of_all_pairs_never_exist_at_once(method, monkeypatch):
    monkeypatch.setattr("alignment.initializers.similarity._WORKING_BYTES", 1 << 20)
    targets, tokens = 1500, 2000
    candidates = Candidates.from_vectors(torch.arange(tokens), random(tokens, 16, seed=17))
    queries, matrix = random(targets, 16, seed=18), random(tokens, 4, seed=19)
    with LargestTensor() as watched:
        if method == "clp":
            ProportionalRows.fit(candidates, matrix).rows(queries)
        else:
            similar_rows(queries, candidates, *METHODS[method]).combine(matrix)
    assert watched.elements < targets * tokens / 8
