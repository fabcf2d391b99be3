"""Trans-Tokenization: word alignment, counts and the weights made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.special import digamma

from alignment.byte_view import ByteView
from alignment.initializers import word_alignment
from alignment.initializers.translation import (
    Words,
    frequent,
    token_counts,
    translation_rows,
    with_numbers_spelled,
)
from alignment.initializers.word_alignment import Sentences, link_counts
from alignment.vocab import align_vocabularies


def _sentences(lists):
    return Sentences(
        np.array([word for words in lists for word in words], dtype=np.int32), np.cumsum([0, *map(len, lists)])
    )


def _random_corpus(seed, pairs=40, words=6):
    draw = np.random.default_rng(seed)
    old = [draw.integers(0, words, draw.integers(0, 6)).tolist() for _ in range(pairs)]
    new = [draw.integers(0, words + 1, draw.integers(0, 6)).tolist() for _ in range(pairs)]
    return old, new


def _links_by_loops(given, explained, explained_words, iterations):
    """The model of the module's docstring, one position after the other."""
    null_share, tension, prior = 0.08, 4.0, 0.01
    corpus = [(f, e) for f, e in zip(given, explained, strict=True) if f and e]
    table = {}

    def joint(f, e, j):
        h = [math.exp(-tension * abs((i + 1) / len(f) - (j + 1) / len(e))) for i in range(len(f))]
        scores = [(1 - null_share) * h[i] / sum(h) * table.get((f[i], e[j]), 1.0) for i in range(len(f))]
        return [*scores, null_share * table.get((None, e[j]), 1.0)]

    for _ in range(iterations):
        counts = {}
        for f, e in corpus:
            for j in range(len(e)):
                scores = joint(f, e, j)
                for word, score in zip([*f, None], scores, strict=True):
                    counts[word, e[j]] = counts.get((word, e[j]), 0) + score / sum(scores)
        totals = {}
        for (word, _), count in counts.items():
            totals[word] = totals.get(word, 0) + count
        table = {
            (word, other): math.exp(digamma(count + prior) - digamma(totals[word] + prior * explained_words))
            for (word, other), count in counts.items()
        }
    links = {}
    for f, e in corpus:
        for j in range(len(e)):
            scores = joint(f, e, j)
            best = int(np.argmax(scores[:-1]))
            if scores[best] > scores[-1]:
                links[f[best], e[j]] = links.get((f[best], e[j]), 0) + 1
    return links


@pytest.mark.parametrize("block_cells", [7, 1 << 21])
@pytest.mark.parametrize("iterations", [1, 4])
def test_links_are_those_of_the_model_written_as_loops(monkeypatch, block_cells, iterations):
    monkeypatch.setattr(word_alignment, "_BLOCK_CELLS", block_cells)
    old, new = _random_corpus(3)
    found = link_counts(
        _sentences(old), _sentences(new), source_words=6, target_words=7, iterations=iterations
    ).toarray()
    expected = np.zeros((6, 7))
    for (f, e), count in _links_by_loops(old, new, 7, iterations).items():
        expected[f, e] += count / 2
    for (e, f), count in _links_by_loops(new, old, 6, iterations).items():
        expected[f, e] += count / 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=0)
    assert expected.sum() > 20


def test_a_dictionary_is_found_in_translations_with_other_word_orders():
    draw = np.random.default_rng(0)
    dictionary = draw.permutation(50)
    old = [draw.integers(0, 50, 6).tolist() for _ in range(400)]
    new = [[int(dictionary[word]) for word in np.roll(words, draw.integers(0, 2))] for words in old]
    links = link_counts(_sentences(old), _sentences(new), source_words=50, target_words=50, iterations=5)
    np.testing.assert_array_equal(links.argmax(axis=1), dictionary)
    assert links.toarray()[np.arange(50), dictionary].sum() > 0.95 * links.sum()


def test_an_empty_corpus_has_no_links():
    links = link_counts(_sentences([[]]), _sentences([[]]), source_words=0, target_words=0, iterations=2)
    assert links.shape == (0, 0)


def test_words_end_at_spaces_and_punctuation_and_stay_together_inside():
    view = ByteView.from_token_bytes(
        [b" the", b" ca", b"t", b",", b" caf", b"\xc3", b"\xa9", b"s", "東".encode(), "京".encode(), b"'t", None]
    )
    words = Words(view)
    sentence = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 10], dtype=np.int32)
    split = words.sentences([sentence, np.array([1, 2], dtype=np.int32), np.array([], dtype=np.int32)])
    spelled = [word.tolist() for word in words.tokens]
    assert spelled == [[0], [1, 2], [3], [4, 5, 6, 7], [8], [9], [2], [10]]
    assert split.words.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 1]
    assert split.offsets.tolist() == [0, 8, 9, 9]


def test_counts_go_half_to_the_token_in_the_same_place_and_half_to_all():
    links = csr_array(np.array([[4.0, 0.0], [0.0, 6.0]]))
    source_words = [np.array([0, 1]), np.array([2, 1, 0])]
    target_words = [np.array([3, 0]), np.array([1])]
    counts = token_counts(links, source_words, target_words, shape=(4, 3)).toarray()
    expected = np.zeros((4, 3))
    expected[3, 0], expected[3, 1] = 2 + 1, 1  # 4 links: 2 from the same place, 2 spread over two tokens
    expected[0, 1], expected[0, 0] = 2 + 1, 1
    expected[1] = 2  # 6 links spread over three tokens
    np.testing.assert_allclose(counts, expected)


def test_each_target_token_receives_the_whole_link():
    draw = np.random.default_rng(1)
    source_words = [draw.integers(0, 9, size) for size in (1, 2, 3, 2)]
    target_words = [np.array([place]) if place < 2 else np.array([place, place + 2]) for place in range(4)]
    links = csr_array(draw.integers(0, 5, (4, 4)).astype(float))
    counts = token_counts(links, source_words, target_words, shape=(6, 9)).toarray()
    per_word = links.toarray().sum(axis=0)
    np.testing.assert_allclose(counts.sum(axis=1), per_word[[0, 1, 2, 3, 2, 3]])


def test_weights_are_the_worked_example():
    counts = csr_array(np.array([[0, 0, 0, 0], [3.0, 0, 6, 1]]))  # embedding_init.md §4.10
    rows = translation_rows(counts, torch.tensor([1, 0]))
    assert rows.indices.tolist() == [[0, 2, 3], [-1, -1, -1]]
    torch.testing.assert_close(rows.weights[0], torch.tensor([0.3, 0.6, 0.1]), atol=1e-6, rtol=0)
    matrix = torch.tensor([[1.0, 0], [9, 9], [0, 1], [1, 1]]).bfloat16()
    torch.testing.assert_close(rows.combine(matrix), torch.tensor([[0.4, 0.7], [0, 0]]), atol=1e-6, rtol=0)


def test_rows_depend_neither_on_the_block_nor_on_the_ids():
    draw = np.random.default_rng(2)
    dense = draw.integers(0, 4, (30, 20)) * (draw.random((30, 20)) < 0.3)
    counts = csr_array(dense.astype(float))
    matrix = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = translation_rows(counts, torch.arange(30)).combine(matrix)
    apart = torch.cat([translation_rows(counts, ids).combine(matrix) for ids in torch.arange(30).split(7)])
    torch.testing.assert_close(apart, whole, atol=1e-14, rtol=0)
    order = draw.permutation(30)
    permuted = translation_rows(csr_array(counts[order]), torch.arange(30)).combine(matrix)
    assert torch.equal(permuted, whole[order])
    made = torch.from_numpy(dense.sum(axis=1) > 0)
    assert (whole[made] >= matrix.min(dim=0).values - 1e-6).all()
    assert (whole[made] <= matrix.max(dim=0).values + 1e-6).all()


def test_rare_counts_are_dropped_and_repeated_ones_added_up():
    counts = csr_array((np.array([4.0, 6, 9]), (np.array([0, 0, 0]), np.array([1, 1, 2]))), shape=(1, 3))
    assert frequent(counts, 10).toarray().tolist() == [[0, 10, 0]]


def test_numbers_are_spelled_and_not_translated():
    source = ByteView.from_token_bytes([b"1", b"2", b"x"])
    target = ByteView.from_token_bytes([b"x", b"121"])
    alignment = align_vocabularies(source, target)
    counts = csr_array(np.array([[0.0, 0, 5], [0, 0, 5]]))
    spelled = with_numbers_spelled(counts, alignment, np.array([False, True]))
    assert spelled.toarray().tolist() == [[0, 0, 5], [2, 1, 0]]
