"""Static word vectors: files, rotation, and token vectors made of them."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from scipy.stats import ortho_group
from toy_tokenizers import byte_level, fast

from alignment.byte_view import ByteView
from alignment.initializers.word_vectors import (
    VectorFileError,
    WordVectors,
    aligned,
    read_vectors,
    read_word_pairs,
    token_vectors,
    zipf_importance,
)

VECTORS = "3 2\nthe 1 0\nnaïve -0.5 2e-1 \nthe 7 7\n"
WORDS = ["one", "two", "three", "four", "five", "six"]


@pytest.fixture
def write(tmp_path):
    def written(content: str | bytes, name: str = "words.vec"):
        path = tmp_path / name
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return written


@pytest.mark.parametrize("name", ["words.vec", "words.vec.gz"])
def test_vectors_are_read_and_the_first_of_a_word_counts(write, name):
    read = read_vectors(write(VECTORS, name))
    assert read.words == ["the", "naïve"]
    assert np.array_equal(read.vectors, np.array([[1, 0], [-0.5, 0.2]], dtype=np.float32))


def test_gensim_writes_what_is_read(tmp_path):
    from gensim.models import KeyedVectors

    vectors = np.random.default_rng(1).standard_normal((6, 5)).astype(np.float32)
    keyed = KeyedVectors(5)
    keyed.add_vectors(WORDS, vectors)
    keyed.save_word2vec_format(str(tmp_path / "words.vec"))
    read = read_vectors(tmp_path / "words.vec")
    assert read.words == WORDS
    assert np.array_equal(read.vectors, vectors)


def test_only_so_many_vectors_are_read_as_asked_for(write):
    assert read_vectors(write(VECTORS + "damaged"), limit=1).words == ["the"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"words.vec:1: expected the number of vectors"),
        ("the 1 0\n", r"words.vec:1: expected the number of vectors"),
        (b"\x93\xba\x16\x4f", r"words.vec:1: .*not its .bin"),
        ("0 2\n", r"words.vec:1: expected the number"),
        ("2 2\nthe 1 0\n", r"promises 2 vectors, the file ends after 1"),
        ("2 2\nthe 1 0\nof 1\n", r"words.vec:3: expected 2 finite numbers after 'of', found 1"),
        ("2 2\nthe 1 0\nNew York 1 0\n", r"words.vec:3: expected a word and 2 numbers"),
        ("1 2\nthe 1 nan\n", r"words.vec:2: expected 2 finite numbers"),
        (b"1 1\n\xff\xfe 1\n", r"words.vec:2: not UTF-8 at byte 0"),
    ],
)
def test_damaged_vectors_are_named_by_file_and_line(write, content, message):
    with pytest.raises(VectorFileError, match=message):
        read_vectors(write(content))


def test_word_pairs_stand_between_tabs_or_spaces(write):
    pairs = read_word_pairs(write("dog\tHund\n\nNew York\tNew York\ncat Katze\r\n", "pairs.tsv"))
    assert pairs == [("dog", "Hund"), ("New York", "New York"), ("cat", "Katze")]


@pytest.mark.parametrize("line", ["dog", "a b c", "dog\t", "a\tb\tc"])
def test_damaged_word_pairs_are_named_by_file_and_line(write, line):
    with pytest.raises(VectorFileError, match=r"pairs.tsv:2: expected a source word, a tab and a target word"):
        read_word_pairs(write(f"cat\tKatze\n{line}\n", "pairs.tsv"))


def test_rotation_that_made_the_target_is_found_again():
    rotation = ortho_group.rvs(5, random_state=2)
    vectors = np.random.default_rng(3).standard_normal((len(WORDS), 5)).astype(np.float32)
    source = WordVectors(WORDS, vectors)
    target = WordVectors([f"{word}o" for word in WORDS], (vectors @ rotation).astype(np.float32))
    found = aligned(source, target, [(word, f"{word}o") for word in WORDS])
    np.testing.assert_allclose(found.vectors, target.vectors, atol=1e-5)
    assert found.words == WORDS


def test_pairs_stand_for_other_spellings_and_count_once():
    vectors = np.eye(2, dtype=np.float32)
    source, target = WordVectors(["dog", "cat"], vectors), WordVectors(["Hund", "Katze"], vectors[::-1].copy())
    found = aligned(source, target, [("DOG", "hund"), ("dog", "Hund"), ("cat", "katze")])
    np.testing.assert_allclose(found.vectors, vectors[::-1], atol=1e-6)
    with pytest.raises(VectorFileError, match="only 1 pairs"):
        aligned(source, target, [("DOG", "hund"), ("dog", "Hund"), ("cat", "Hamster")])


def test_vectors_of_different_length_cannot_be_rotated():
    with pytest.raises(VectorFileError, match="3 dimensions and target vectors 2"):
        aligned(WordVectors(["a"], np.ones((1, 3))), WordVectors(["a"], np.ones((1, 2))), [("a", "a")])


def test_token_vector_is_the_weighted_mean_of_the_words_that_contain_it():
    view = ByteView.from_tokenizer(fast(byte_level(("a", "b"), ("Ġ", "ab"), ("c", "d"), ("z", "z"))))
    words = WordVectors(["ab", "abcd", "cdcd", "e"], np.array([[1, 0], [0, 1], [2, 2], [5, 5]], dtype=np.float32))
    importance = np.array([4.0, 2.0, 1.0, 0.5])
    vectors = token_vectors(view, words, importance)
    by_bytes = {view.token_bytes(token): vectors[token].tolist() for token in range(view.vocab_size)}
    # At the start of a text and after a space: " abcd" is " ab" and "cd", " cdcd" is " ", "cd" and "cd".
    assert by_bytes[b"ab"] == pytest.approx([4 / 6, 2 / 6])
    assert by_bytes[b" ab"] == pytest.approx([4 / 6, 2 / 6])
    assert by_bytes[b"cd"] == pytest.approx([2 / 3, 4 / 3])
    assert by_bytes[b" "] == pytest.approx([(2 + 2.5) / 1.5, (2 + 2.5) / 1.5])
    assert by_bytes[b"zz"] == [0, 0]
    assert by_bytes[b"a"] == [0, 0]


def test_token_vectors_do_not_depend_on_how_words_are_batched(monkeypatch):
    view = ByteView.from_tokenizer(fast(byte_level(("t", "h"), ("th", "r"), ("o", "n"), ("Ġ", "f"))))
    words = WordVectors(WORDS, np.random.default_rng(4).standard_normal((len(WORDS), 3)).astype(np.float32))
    whole = token_vectors(view, words, zipf_importance(len(WORDS)))
    monkeypatch.setattr("alignment.initializers.word_vectors._BLOCK_WORDS", 2)
    assert np.array_equal(token_vectors(view, words, zipf_importance(len(WORDS))), whole)


def test_frequencies_fall_with_the_rank():
    assert zipf_importance(4).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
