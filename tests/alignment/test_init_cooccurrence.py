"""TokAlign: co-occurrence counts, their vectors and the matching of two vocabularies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from alignment.initializers import cooccurrence
from alignment.initializers.cooccurrence import (
    TokenVectors,
    cooccurrences,
    most_alike,
    positive_pmi,
    relative_vectors,
    svd_vectors,
    token_vectors,
)


def _counts_by_loops(documents, size, window):
    counts = np.zeros((size, size))
    for ids in documents:
        for i, left in enumerate(ids):
            for j, right in enumerate(ids):
                if i != j and abs(i - j) <= window:
                    counts[left, right] += 1 / abs(i - j)
    return counts


@pytest.mark.parametrize("block_tokens", [1, 1 << 20])
@pytest.mark.parametrize("window", [1, 3, 50])
def test_counts_are_those_of_loops_over_positions(monkeypatch, window, block_tokens):
    monkeypatch.setattr(cooccurrence, "_BLOCK_TOKENS", block_tokens)
    draw = np.random.default_rng(0)
    documents = [draw.integers(0, 8, length) for length in (20, 1, 0, 7)]
    found = cooccurrences(documents, 8, window=window).toarray()
    np.testing.assert_allclose(found, _counts_by_loops(documents, 8, window), atol=1e-12)


def test_pmi_of_worked_counts():
    # p(0, 0) = 1/4, p(0) = 1/2 and so on: ratios 1, 1 | a second table where 0 and 1 meet more than by chance.
    assert positive_pmi(csr_array(np.array([[1.0, 1], [1, 1]]))).nnz == 0
    found = positive_pmi(csr_array(np.array([[0, 3.0, 0], [3, 0, 1], [0, 1, 0]]))).toarray()
    np.testing.assert_allclose(found, [[0, np.log(2), 0], [np.log(2), 0, np.log(2)], [0, np.log(2), 0]], atol=1e-12)


def test_vectors_are_the_best_approximation_of_their_rank():
    draw = np.random.default_rng(0)
    matrix = draw.random((12, 12)) * (draw.random((12, 12)) < 0.5)
    matrix = matrix + matrix.T
    left, values, _ = np.linalg.svd(matrix)
    vectors = svd_vectors(csr_array(matrix), 4)
    np.testing.assert_allclose(vectors @ vectors.T, left[:, :4] * values[:4] @ left[:, :4].T, atol=1e-9)


@pytest.mark.parametrize("matrix", [np.zeros((0, 0)), np.zeros((1, 1)), np.zeros((5, 5)), np.ones((3, 3))])
def test_vectors_of_next_to_nothing(matrix):
    vectors = svd_vectors(csr_array(matrix), 300)
    assert vectors.shape[0] == len(matrix)
    assert np.isfinite(vectors).all()
    assert vectors.shape[1] == np.linalg.matrix_rank(matrix) if matrix.size else True


def test_relative_vectors_do_not_change_when_the_space_is_turned():
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((20, 6)).astype(np.float32)
    turned = vectors @ np.linalg.qr(draw.standard_normal((6, 6)))[0].astype(np.float32)
    pivots = np.arange(0, 20, 3)
    np.testing.assert_allclose(
        relative_vectors(vectors, vectors[pivots]), relative_vectors(turned, turned[pivots]), atol=1e-5
    )


def _sentences(seed, documents=300):
    """Text in which a token is followed by one of the next four of a circle: every token has neighbours of its own."""
    draw = np.random.default_rng(seed)
    return [(np.cumsum(draw.integers(1, 5, 12)) + draw.integers(0, 30)) % 30 for _ in range(documents)]


def _options(**changes):
    return {"dimensions": 8, "window": 4, "min_count": 3} | changes


def test_renamed_tokens_find_themselves():
    documents = _sentences(0)
    rename = np.random.default_rng(1).permutation(30)
    source = token_vectors(documents, np.arange(30), **_options(dimensions=25))
    target = token_vectors([rename[ids] for ids in documents], np.arange(30), **_options(dimensions=25))
    shared = np.arange(0, 30, 2)
    found, similarity = most_alike(source, target, (shared, rename[shared]), pivots=300)
    np.testing.assert_array_equal(rename[found], target.ids)
    assert similarity.min() > 0.999


def test_the_vectors_belong_to_the_keys_and_not_to_the_ids():
    documents = _sentences(0)
    keys = np.random.default_rng(2).integers(0, 1 << 60, 30)
    rename = np.random.default_rng(1).permutation(30)
    renamed_keys = np.empty_like(keys)
    renamed_keys[rename] = keys
    plain = token_vectors(documents, keys, **_options())
    renamed = token_vectors([rename[ids] for ids in documents], renamed_keys, **_options())
    back = np.argsort(renamed.ids)[np.searchsorted(renamed.ids, rename[plain.ids])]
    assert plain.vectors.tobytes() == renamed.vectors[back].tobytes()
    assert plain.vectors.tobytes() == token_vectors(documents, keys, **_options()).vectors.tobytes()


def test_rare_tokens_have_no_vector():
    documents = [np.array([0, 1, 2, 0, 1, 2, 0, 1]), np.array([3, 0, 1])]
    found = token_vectors(documents, np.arange(5), **_options(min_count=3))
    assert found.ids.tolist() == [0, 1]
    assert found.counts.tolist() == [4, 4]


def test_the_most_frequent_shared_tokens_are_the_pivots():
    draw = np.random.default_rng(0)
    ids = np.arange(6)
    source = TokenVectors(ids, np.array([9, 9, 5, 1, 9, 9]), draw.standard_normal((6, 3)).astype(np.float32))
    target = TokenVectors(ids, np.array([9, 4, 5, 9, 9, 9]), draw.standard_normal((6, 3)).astype(np.float32))
    shared = np.array([0, 1, 2, 3])
    found, similarity = most_alike(source, target, (shared, shared), pivots=2)
    pivots = np.array([0, 2])
    cosines = (
        relative_vectors(target.vectors, target.vectors[pivots])
        @ relative_vectors(source.vectors, source.vectors[pivots]).T
    )
    np.testing.assert_array_equal(found, cosines.argmax(axis=1))
    np.testing.assert_allclose(similarity, cosines.max(axis=1), atol=1e-6)


def test_without_a_shared_token_in_the_text_nothing_is_matched():
    vectors = TokenVectors(np.array([0, 1]), np.array([5, 5]), np.eye(2, dtype=np.float32))
    found, similarity = most_alike(vectors, vectors, (np.array([7]), np.array([0])), pivots=3)
    assert len(found) == len(similarity) == 0
