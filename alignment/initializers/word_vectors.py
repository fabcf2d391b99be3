"""Static word vectors: read, rotated into one space, averaged into token vectors (embedding_init.md §1.5, §1.9)."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.sparse import csr_array

from alignment.byte_view import ByteView

_BLOCK_WORDS = 1 << 14

Between = Callable[[], None]


class VectorFileError(ValueError):
    """A file of vectors or of word pairs cannot be used; the message names the file, and the line if it is one."""


@dataclass(frozen=True)
class WordVectors:
    """W words with their vectors, in the order of their file: usually that of falling frequency.

    Attributes:
        words: each once.
        vectors: float32 [W, A].
    """

    words: list[str]
    vectors: np.ndarray


def read_vectors(path: Path, *, limit: int | None = None, between: Between = lambda: None) -> WordVectors:
    """Read word2vec's text format, that of fastText's ``.vec`` files; a ``.gz`` file is unpacked on the way.

    The first line holds the number of vectors and their length, every other line a word and its numbers, separated by
    spaces. Of a word that occurs twice the first vector counts.

    Args:
        limit: read only so many vectors, from the start; None reads all.
        between: called every few thousand lines; may raise.

    Raises:
        VectorFileError: the file is not in that format, or holds a number that is not finite.
    """
    with _open(path) as file:
        count, length = _header(path, file.readline())
        wanted = count if limit is None else min(count, limit)
        lines = enumerate(itertools.islice(file, wanted), start=2)
        words: dict[str, np.ndarray] = {}
        number = 1
        for number, line in lines:
            word, vector = _vector(f"{path}:{number}", line, length)
            words.setdefault(word, vector)
            if number % _BLOCK_WORDS == 0:
                between()
    if number - 1 < wanted:
        raise VectorFileError(f"{path}: the first line promises {count} vectors, the file ends after {number - 1}")
    return WordVectors(list(words), np.stack(list(words.values())))


def read_word_pairs(path: Path) -> list[tuple[str, str]]:
    """Read a bilingual dictionary: a line holds a source and a target word, separated by a tab or else by spaces.

    Raises:
        VectorFileError: a line holds anything else.
    """
    pairs = []
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            text = _decoded(f"{path}:{number}", line).strip()
            fields = [field.strip() for field in (text.split("\t") if "\t" in text else text.split())]
            if text and (len(fields) != 2 or not all(fields)):
                raise VectorFileError(
                    f"{path}:{number}: expected a source word, a tab and a target word, found {text[:60]!r}"
                )
            if text:
                pairs.append((fields[0], fields[1]))
    return pairs


def aligned(source: WordVectors, target: WordVectors, pairs: Iterable[tuple[str, str]]) -> WordVectors:
    """The source words with their vectors rotated into the target's space.

    The rotation is the orthogonal W that minimises the squared distances between x W and y over the pairs (x, y); each
    pair also stands for its lower-case and title-case spellings, and counts once (WECHSEL counts repeated ones again).

    Raises:
        VectorFileError: vectors of different length, or fewer pairs with vectors on both sides than they have
            dimensions, which leave the rotation open.
    """
    length = target.vectors.shape[1]
    if source.vectors.shape[1] != length:
        raise VectorFileError(
            f"source vectors have {source.vectors.shape[1]} dimensions and target vectors {length}: no rotation takes "
            "one to the other; use vectors of the same length"
        )
    of_source = {word: index for index, word in enumerate(source.words)}
    of_target = {word: index for index, word in enumerate(target.words)}
    known = {
        (of_source[left], of_target[right]): None
        for pair in pairs
        for left, right in itertools.product(*map(_spellings, pair))
        if left in of_source and right in of_target
    }
    if len(known) < length:
        raise VectorFileError(
            f"only {len(known)} pairs of the dictionary have vectors on both sides; a rotation of {length} dimensions "
            "needs at least as many. Use a larger dictionary, or read more words"
        )
    rows = np.array(list(known), dtype=np.int64)
    left, right = source.vectors[rows[:, 0]], target.vectors[rows[:, 1]]
    rotation, _ = orthogonal_procrustes(left.astype(np.float64), right.astype(np.float64))
    return WordVectors(source.words, source.vectors @ rotation.astype(np.float32))


def token_vectors(
    view: ByteView, words: WordVectors, importance: np.ndarray, *, between: Between = lambda: None
) -> np.ndarray:
    """The mean vector of the words that contain each token, weighted by ``importance`` [W].

    A word contains the tokens that it is cut into, at the start of a text or after a space.

    Args:
        between: called every few thousand words; may raise.

    Returns:
        float32 [V, A]; zero for a token that no word contains.
    """
    tokens, containing = _contained_tokens(view, words.words, between)
    shape = (view.vocab_size, len(words.words))
    weights = csr_array((importance[containing].astype(np.float32), (tokens, containing)), shape=shape)
    totals = np.asarray(weights.sum(axis=1), dtype=np.float32)
    return (weights @ words.vectors) / np.where(totals > 0, totals, 1)[:, None]


def zipf_importance(count: int) -> np.ndarray:
    """float64 [count]: 1 / rank, the relative frequencies of words in the order of falling frequency by Zipf's law."""
    return 1.0 / np.arange(1, count + 1)


def _contained_tokens(view: ByteView, words: Sequence[str], between: Between) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int64 [P] and indices of words int64 [P]: every pair of a word and a token in it, once."""
    pairs = [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(words), _BLOCK_WORDS):
        between()
        block = words[start : start + _BLOCK_WORDS]
        encodings = view.encode_batch([spelled for word in block for spelled in (word, f" {word}")], exact=False)
        counts = np.array([len(encoding.ids) for encoding in encodings])
        owners = np.repeat(start + np.arange(len(encodings)) // 2, counts)
        ids = np.concatenate([encoding.ids for encoding in encodings]).astype(np.int64)
        spelling = ~np.concatenate([encoding.special for encoding in encodings])
        pairs.append(np.unique(ids[spelling] * len(words) + owners[spelling]))
    tokens, containing = np.divmod(np.concatenate(pairs), max(len(words), 1))
    return tokens, containing


def _spellings(word: str) -> dict[str, None]:
    return dict.fromkeys((word, word.lower(), word.title()))


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _header(path: Path, line: bytes) -> tuple[int, int]:
    try:
        count, length = map(int, line.split())
    except ValueError:
        count = length = 0
    if count < 1 or length < 1:
        raise VectorFileError(
            f"{path}:1: expected the number of vectors and their length, found {line[:60]!r}; the file must be in "
            "word2vec's text format (fastText's .vec, not its .bin)"
        )
    return count, length


def _vector(place: str, line: bytes, length: int) -> tuple[str, np.ndarray]:
    word, _, numbers = _decoded(place, line).rstrip("\n ").partition(" ")
    try:
        vector = np.array(numbers.split(" "), dtype=np.float32)
    except ValueError:
        raise VectorFileError(f"{place}: expected a word and {length} numbers, found {line[:60]!r}") from None
    if len(vector) != length or not np.isfinite(vector).all():
        raise VectorFileError(f"{place}: expected {length} finite numbers after {word!r}, found {len(vector)} numbers")
    return word, vector


def _decoded(place: str, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise VectorFileError(f"{place}: not UTF-8 at byte {error.start} of the line; convert the file") from None
