"""TokenAdapt: weights of pieces and neighbours, and the nearest texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignment.initializers.rows import SparseRows
from alignment.initializers.tokenadapt import global_weights, local_weights, mixed_rows, nearest, piece_similarities

USED = torch.ones(1, 2, dtype=torch.bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_local_weights_are_the_worked_example(dtype):
    similarities = torch.tensor([[0.8, 0.5, 0.99]], dtype=dtype)  # embedding_init.md §4.8; the third piece is padding
    used = torch.tensor([[True, True, False]])
    weights = local_weights(similarities, torch.tensor([[4, 2, 7]]), used, 0.3)
    torch.testing.assert_close(weights, torch.tensor([[0.690765, 0.309235, 0]], dtype=dtype), atol=1e-6, rtol=0)


def test_global_weights_are_the_worked_example():
    similarities, used = torch.tensor([[0.9, 0.6, 0.3]]), torch.ones(1, 3, dtype=torch.bool)
    weights = global_weights(similarities, used, 0.3, 0.0)
    torch.testing.assert_close(weights, torch.tensor([[0.665241, 0.244728, 0.090031]]), atol=1e-6, rtol=0)
    assert global_weights(similarities, used, 0.3, 0.25).tolist() == [[1, 0, 0]]
    assert global_weights(similarities, used, 0.3, 0.7).tolist() == [[0, 0, 0]]


def test_the_mixed_row_is_the_worked_example():
    matrix = torch.tensor([[1.0, 0], [0, 1], [2, 0], [0, 2], [1, 1]])
    pieces = SparseRows(
        torch.tensor([[0, 1]]), local_weights(torch.tensor([[0.8, 0.5]]), torch.tensor([[4, 2]]), USED, 0.3)
    )
    neighbours = SparseRows(
        torch.tensor([[2, 3, 4]]), global_weights(torch.tensor([[0.9, 0.6, 0.3]]), torch.ones(1, 3).bool(), 0.3, 0.0)
    )
    torch.testing.assert_close(neighbours.combine(matrix), torch.tensor([[1.420512, 0.579488]]), atol=1e-5, rtol=0)
    row = mixed_rows(pieces, neighbours, 0.3).combine(matrix)
    torch.testing.assert_close(row, torch.tensor([[0.909689, 0.390311]]), atol=1e-5, rtol=0)


def test_a_missing_part_leaves_all_weight_to_the_other():
    some, none = torch.tensor([[0.25, 0.75]]), torch.zeros(1, 2)
    indices, others, nowhere = torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), torch.tensor([[-1, -1]])
    rows = mixed_rows(SparseRows(indices, some), SparseRows(nowhere, none), 0.3)
    assert rows.indices.tolist() == [[0, 1, -1, -1]]
    assert rows.weights.tolist() == [[0.25, 0.75, 0, 0]]
    rows = mixed_rows(SparseRows(nowhere, none), SparseRows(others, some), 0.3)
    assert rows.indices.tolist() == [[-1, -1, 2, 3]]
    assert rows.weights.tolist() == [[0, 0, 0.25, 0.75]]
    rows = mixed_rows(SparseRows(nowhere, none), SparseRows(nowhere, none), 0.3)
    assert (rows.indices == -1).all()


def test_weights_are_convex():
    generator = torch.Generator().manual_seed(0)
    used = torch.rand(200, 6, generator=generator) < 0.7
    similarities = torch.rand(200, 6, generator=generator) * 2 - 1
    lengths = torch.randint(0, 9, (200, 6), generator=generator)
    for weights in (local_weights(similarities, lengths, used, 0.3), global_weights(similarities, used, 0.3, 0.1)):
        assert (weights >= 0).all()
        assert (weights[~used] == 0).all()
        sums = weights.sum(dim=1)
        assert ((sums - 1).abs() < 1e-5).logical_or(sums == 0).all()
        assert (sums[used.any(dim=1)] > 0).float().mean() > 0.9


def test_similarities_are_those_of_the_pieces_only():
    embeddings, table = _unit(3, 8, 0), _unit(5, 8, 1)
    pieces = torch.tensor([[4, -1, -1], [0, 4, 0], [-1, -1, -1]])
    found = piece_similarities(embeddings, pieces, table)
    for token in range(3):
        for place, piece in enumerate(pieces[token].tolist()):
            expected = 0 if piece < 0 else sum(a * b for a, b in zip(embeddings[token], table[piece], strict=True))
            assert float(found[token, place]) == pytest.approx(float(expected), abs=1e-6)


def _unit(count, width, seed):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def test_nearest_are_those_of_a_full_float64_sort():
    queries, keys = _unit(300, 16, 0), _unit(500, 16, 1)
    indices, similarities = nearest(queries, keys, 3)
    products = queries.double().numpy() @ keys.double().numpy().T
    np.testing.assert_array_equal(indices.numpy(), np.argsort(-products, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(similarities.numpy(), -np.sort(-products, axis=1)[:, :3], atol=1e-6)


def test_of_equal_texts_the_lowest_index_is_nearest():
    keys = _unit(40, 8, 2).repeat(3, 1)
    indices, _ = nearest(keys[:40], keys, 3)
    assert torch.equal(indices, torch.stack([torch.arange(40), torch.arange(40, 80), torch.arange(80, 120)], dim=1))


def test_nearest_do_not_depend_on_the_block():
    queries, keys = _unit(300, 16, 0), _unit(500, 16, 1).repeat(2, 1)
    whole = nearest(queries, keys, 4)
    apart = [nearest(block, keys, 4) for block in queries.split(17)]
    for place in range(2):
        assert torch.equal(torch.cat([block[place] for block in apart]), whole[place])


def test_fewer_keys_than_neighbours():
    indices, similarities = nearest(_unit(5, 4, 0), _unit(2, 4, 1), 3)
    assert indices.shape == similarities.shape == (5, 2)
