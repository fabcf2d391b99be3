"""Vectors of tokens trained on text."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from alignment.byte_view import ByteView
from alignment.initializers.token_vectors import TrainingOptions, spellings, train_token_vectors

QUICK = TrainingOptions(dimensions=16, epochs=2, min_count=5, negative=3, seed=3)
NAMES = [None, *(f" {word}" for word in ("cat", "cats", "dog", "sun", "moon", "run", "ran", "rare")), None]
RARE = 8


def documents(seed: int = 1) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    texts = [generator.integers(0, RARE, size=length).astype(np.int32) for length in (3000, 1, 0, 700)]
    return [*texts, np.array([RARE, 9, RARE], dtype=np.int32)]


def test_the_same_text_gives_the_same_bytes_in_another_process():
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]; import test_init_token_vectors as t, hashlib\n"
        "print(hashlib.sha256(t.train_token_vectors(t.NAMES, t.documents(), t.QUICK).tobytes()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script, os.path.dirname(__file__), os.getcwd()],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert not np.array_equal(
        train_token_vectors(NAMES, documents(), QUICK), train_token_vectors(NAMES, documents(2), QUICK)
    )


def test_vectors_stay_with_their_tokens_when_ids_are_permuted():
    order = np.random.default_rng(4).permutation(len(NAMES))
    place = np.argsort(order)
    vectors = train_token_vectors(NAMES, documents(), QUICK)
    permuted = train_token_vectors([NAMES[token] for token in order], [place[text] for text in documents()], QUICK)
    assert np.array_equal(permuted, vectors[order])


def test_rare_tokens_and_those_that_spell_nothing_get_no_vector():
    vectors = train_token_vectors(NAMES, documents(), QUICK)
    assert vectors.dtype == np.float32
    has = (vectors != 0).any(axis=1)
    assert has.tolist() == [False, *[True] * 7, False, False]


def test_tokens_that_spell_the_same_share_a_vector():
    names = [*NAMES, " cat"]
    vectors = train_token_vectors(names, documents(), QUICK)
    assert np.array_equal(vectors[1], vectors[-1])


def test_tokens_among_the_same_neighbours_get_similar_vectors():
    """Texts speak of one of two subjects, each with 200 words of its own."""
    generator = np.random.default_rng(5)
    names = [chr(0x4E00 + token) for token in range(400)]
    texts = [(generator.integers(0, 200, size=100) + 200 * (number % 2)).astype(np.int32) for number in range(1500)]
    vectors = train_token_vectors(names, texts, TrainingOptions(dimensions=16, epochs=3, seed=1))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    same, other = cosines[:200, :200], cosines[:200, 200:]
    assert (same.mean(axis=1) > other.mean(axis=1)).all()
    assert same.mean() > 0.2 + other.mean()


def test_long_documents_are_trained_on_to_their_end():
    """gensim alone drops all but the first 10,000 tokens of a sentence."""
    text = np.concatenate([np.full(12_000, 1), np.tile([2, 3], 3000)]).astype(np.int32)
    short = train_token_vectors(NAMES, [text[:12_000], text[-2:].repeat(5)], QUICK)
    long = train_token_vectors(NAMES, [text], QUICK)
    assert not np.array_equal(short[2], long[2])
    assert (long[[2, 3]] != 0).any(axis=1).all()


def test_training_ends_early_when_asked():
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    train_token_vectors(NAMES, documents() * 50, QUICK, should_stop=should_stop)
    # Once for each of the first pieces, then once an epoch.
    assert asked <= 2 + QUICK.epochs


@pytest.mark.parametrize("texts", [[], [np.zeros(0, np.int32)], [np.array([1, 1, 2], np.int32)]])
def test_too_little_text_is_refused(texts):
    with pytest.raises(ValueError, match="different tokens occurs 5 times"):
        train_token_vectors(NAMES, texts, QUICK)


def test_every_token_is_called_something_of_its_own():
    tokens = [b"a", b" a", "é".encode(), b"\xc3", b"\xa9", b"\xc3\xa9\xc3", "Ã".encode(), None, b"\xff", b"\n"]
    names = spellings(ByteView.from_token_bytes(tokens))
    assert names[:3] == ["a", " a", "é"]
    assert names[7] is None
    given = [name for name in names if name is not None]
    assert len(set(given)) == len(tokens) - 1
    # gensim takes n-grams of UTF-8.
    assert all(name.encode() for name in given)
