"""Constrained Word2Vec: the weights, the pairs that are drawn, and training."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from alignment.initializers import constrained_word2vec
from alignment.initializers.constrained_word2vec import Schedule, Text, convex_rows, pair_loss, train

SCHEDULE = Schedule(rank=4, window=2, negatives=3, epochs=3, batch_pairs=40, learning_rate=0.05, max_steps=None)
NEW, SIZE = 6, 10


def _documents():
    draw = np.random.default_rng(0)
    return [(2 * draw.integers(0, 5) + draw.integers(0, 2, 15)) % SIZE for _ in range(30)]


def _train(schedule=SCHEDULE, *, seed=3, documents=None, old=None, curve=None):
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(20, 5, generator=generator) if old is None else old
    fixed = torch.randn(SIZE - NEW, 5, generator=generator)
    left = torch.rand(NEW, schedule.rank, generator=generator)
    text = Text.of(documents or _documents(), new=NEW, size=SIZE, window=schedule.window)
    losses = [] if curve is None else curve
    rows, trained = train(text, old, fixed, left, schedule, seed, lambda step, loss: losses.append((step, loss)))
    return rows, trained, old


def test_the_worked_example():
    left = torch.tensor([[1.0, 0]], dtype=torch.float64)  # embedding_init.md §4.9
    right = torch.tensor([[0, math.log(2), math.log(5)], [1, 1, 1]], dtype=torch.float64)
    old_rows = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
    found = convex_rows(left, right, old_rows)
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.875]], dtype=torch.float64), atol=1e-12, rtol=0)
    weights = convex_rows(left, right, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([[0.125, 0.25, 0.625]], dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_loss_sums_the_negatives_inside_the_sigmoid():
    centre, neighbour = torch.tensor([[1.0, 2], [0, 1]]), torch.tensor([[0.5, 0], [1, 1]])
    negatives = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [2, 2]])  # two for each pair

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    expected = -(math.log(sigmoid(0.5)) + math.log(sigmoid(-3)) + math.log(sigmoid(1)) + math.log(sigmoid(-2))) / 2
    assert pair_loss(centre, neighbour, negatives).item() == pytest.approx(expected, rel=1e-6)


def test_pairs_are_all_neighbours_of_new_tokens_inside_their_document():
    documents = [np.array([0, 7, 1, -1, 8]), np.array([3]), np.array([2, 2])]
    text = Text.of(documents, new=NEW, size=SIZE, window=2)
    schedule = replace(SCHEDULE, epochs=1, batch_pairs=4)
    batches = list(constrained_word2vec._batches(text, schedule, np.random.default_rng(0)))
    pairs = sorted((int(c), int(n)) for centre, neighbour, _ in batches for c, n in zip(centre, neighbour, strict=True))
    assert pairs == sorted([(0, 7), (0, 1), (1, 7), (1, 0), (1, 8), (2, 2), (2, 2)])
    assert len(batches) == schedule.steps(len(text.centres)) == 4


def test_negatives_follow_the_counts():
    text = Text.of([np.array([0] * 16 + [7] * 81)], new=NEW, size=SIZE, window=2)
    schedule = replace(SCHEDULE, negatives=2000, epochs=1)
    drawn = np.concatenate(
        [n.ravel() for *_, n in constrained_word2vec._batches(text, schedule, np.random.default_rng(0))]
    )
    assert set(drawn.tolist()) == {0, 7}
    assert (drawn == 0).mean() == pytest.approx(8 / (8 + 27), abs=0.01)


def test_the_loss_falls_and_is_reported_every_step():
    curve = []
    _train(replace(SCHEDULE, epochs=10), curve=curve)
    steps, losses = zip(*curve, strict=True)
    assert steps == tuple(range(1, len(steps) + 1))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_rows_stay_in_the_convex_hull_of_the_old_ones():
    # A point is in the hull of a simplex with corners e_j and 0 if its coordinates are positive and sum to at most 1.
    corners = torch.cat([torch.eye(5), torch.zeros(1, 5)])
    rows, _, _ = _train(old=corners)
    assert (rows >= 0).all()
    assert (rows.sum(dim=1) <= 1 + 1e-6).all()
    assert rows.std(dim=0).max() > 1e-3


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    first, again, other = _train()[0], _train()[0], _train(seed=4)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_blocks_of_rows_change_nothing(monkeypatch):
    whole = _train()[0]
    monkeypatch.setattr(constrained_word2vec, "_ROW_BLOCK", 2)
    torch.testing.assert_close(_train()[0], whole, atol=1e-5, rtol=0)


def test_only_tokens_that_were_read_are_trained():
    documents = [np.array([0, 7, 1, 0]), np.array([5])]
    _, trained, _ = _train(documents=documents)
    assert trained.tolist() == [True, True, False, False, False, False]
    _, trained, _ = _train(replace(SCHEDULE, max_steps=1, batch_pairs=1), documents=documents)
    assert trained.sum() == 1


def test_bfloat16_rows_are_widened():
    old = torch.randn(20, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(_train(old=old)[0], _train(old=old.float())[0])


def test_a_text_without_new_tokens_trains_nothing():
    rows, trained, _ = _train(documents=[np.array([7, 8, 9, 7])])
    assert rows.shape == (NEW, 5)
    assert not trained.any()
