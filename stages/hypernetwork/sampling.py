"""Tokenizers drawn at random, for a hypernetwork to be trained on: Unigram models on substrings of a few texts.

Zero-Shot Tokenizer Transfer (Minixhofer et al., NeurIPS 2024), embedding_init.md §1.14: the most frequent substrings of
the words of a batch of texts are the vocabulary, and their frequencies the probabilities. Noise on the frequencies, of
another strength in every draw, makes the tokenizers differ. The specification gives it as "log-normal, mean 1e-5, σ 4";
here that is the law of the standard deviation, with 1e-5 as its median. Everything is bytes, so that every text can be
encoded: all 256 byte values are tokens, and a token has at most 16 bytes (in the paper: characters).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from alignment.token_codecs import byte_alphabet

LONGEST_TOKEN = 16
NOISE_MEDIAN, NOISE_SIGMA = 1e-5, 4.0
_CHARACTER_OF = {byte: character for character, byte in byte_alphabet().items()}
_TO_LATIN_1 = str.maketrans({character: chr(byte) for character, byte in byte_alphabet().items()})
_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


@dataclass(frozen=True)
class SampledVocabulary:
    """The tokens of a Unigram model.

    Attributes:
        tokens: the 256 single bytes in order, then others; all different.
        log_probabilities: float32 [M], of each token.
    """

    tokens: list[bytes]
    log_probabilities: np.ndarray

    def tokenizer(self) -> Tokenizer:
        """A tokenizer whose ids are the positions in ``tokens``."""
        spelled = ("".join(_CHARACTER_OF[byte] for byte in token) for token in self.tokens)
        pieces = list(zip(spelled, self.log_probabilities.tolist(), strict=True))
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=None, byte_fallback=False))
        tokenizer.pre_tokenizer = _WORDS
        return tokenizer


def sample_vocabulary(texts: Sequence[str], size: int, draw: np.random.Generator) -> SampledVocabulary:
    """Draw a vocabulary of at most ``size`` tokens, single bytes included, from what the texts are made of."""
    words = Counter(word for text in texts for word, _ in _WORDS.pre_tokenize_str(text))
    found = _count_substrings({word.translate(_TO_LATIN_1).encode("latin-1"): n for word, n in words.items()})
    frequencies = found.counts / max(found.counts.sum(), 1)
    noise = np.exp(draw.normal(np.log(NOISE_MEDIAN), NOISE_SIGMA))
    noisy = frequencies + noise * draw.standard_normal(len(frequencies))
    single = found.lengths == 1
    longer = np.flatnonzero(~single)
    chosen = longer[np.argsort(-noisy[longer], kind="stable")[: size - 256]]

    least = 1 / max(found.counts.sum(), 1)
    probabilities = np.full(256 + len(chosen), least)
    bytes_found = np.frombuffer(found.data, np.uint8)[found.starts[single]]
    probabilities[bytes_found] = noisy[single]
    probabilities[256:] = noisy[chosen]
    spans = zip(found.starts[chosen].tolist(), found.lengths[chosen].tolist(), strict=True)
    tokens = [bytes([byte]) for byte in range(256)] + [found.data[start : start + length] for start, length in spans]
    return SampledVocabulary(tokens, np.log(probabilities.clip(min=least)).astype(np.float32))


class _Substrings(NamedTuple):
    """Different substrings of ``data``: where one occurrence of each starts, its length, and how often it occurs."""

    data: bytes
    starts: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray


def _count_substrings(words: Mapping[bytes, int]) -> _Substrings:
    """All substrings of up to ``LONGEST_TOKEN`` bytes of words that occur so many times."""
    levels = list(_levels(words))
    starts, lengths, counts = (np.concatenate(column) for column in zip(*levels, strict=True))
    return _Substrings(b"".join(words), starts, lengths, counts)


def _levels(words: Mapping[bytes, int]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Starts, lengths and counts of the substrings of one length at a time, from 1."""
    data = np.frombuffer(b"".join(words), np.uint8).astype(np.int64)
    sizes = np.array([len(word) for word in words], dtype=np.int64)
    room = np.repeat(sizes.cumsum(), sizes) - np.arange(len(data))
    weights = np.repeat(np.fromiter(words.values(), np.float64, len(words)), sizes)
    positions, numbers = np.arange(len(data)), np.zeros(len(data), dtype=np.int64)
    for length in range(1, LONGEST_TOKEN + 1):
        fits = room[positions] >= length
        positions, numbers = positions[fits], numbers[fits]
        # A substring is the one without its last byte, whose number is known, and that byte.
        keys = numbers * 256 + data[positions + length - 1]
        _, first, numbers = np.unique(keys, return_index=True, return_inverse=True)
        yield positions[first], np.full(len(first), length), np.bincount(numbers, weights[positions])
