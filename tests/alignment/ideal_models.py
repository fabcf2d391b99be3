"""Language models that know the texts: a Markov chain over bytes, seen through a tokenizer, summed over all texts."""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

from alignment.byte_models import ByteModel, bpe_model
from alignment.byte_view import ByteView
from alignment.token_index import TokenIndex


def byte_pair_encoding(alphabet: str, merges: Sequence[str]) -> tuple[ByteView, ByteModel]:
    """A tokenizer over an alphabet with merges written ``a+b``, first rank first."""
    entries = [*alphabet, *(merge.replace("+", "") for merge in merges)]
    view = ByteView.from_token_bytes([entry.encode() for entry in entries])
    ids = {entry: token for token, entry in enumerate(entries)}
    pairs = {
        tuple(ids[part] for part in merge.split("+")): (rank, ids[merge.replace("+", "")])
        for rank, merge in enumerate(merges)
    }
    return view, bpe_model(TokenIndex(view), pairs)


class MarkovTexts:
    """All texts of one length over an alphabet, with their probabilities.

    Args:
        start: probability of every first letter.
        step: letter -> probability of every next letter.
    """

    def __init__(self, start: dict[str, float], step: dict[str, dict[str, float]], length: int) -> None:
        self.texts = {
            "".join(letters): start[letters[0]] * math.prod(step[a][b] for a, b in itertools.pairwise(letters))
            for letters in itertools.product(start, repeat=length)
        }

    def probability(self, prefix: str) -> float:
        """Of a text to begin with ``prefix``."""
        return sum(p for text, p in self.texts.items() if text.startswith(prefix))

    def through(self, encode: ByteModel, vocab_size: int) -> TokenChain:
        """The same texts as a distribution of token sequences."""
        return TokenChain({tuple(encode(text.encode())): p for text, p in self.texts.items()}, vocab_size)


class TokenChain:
    """A distribution of token sequences: an ideal language model, which gives invalid encodings nothing."""

    def __init__(self, sequences: dict[tuple[int, ...], float], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._mass: dict[tuple[int, ...], float] = defaultdict(float)
        for tokens, probability in sequences.items():
            for end in range(len(tokens) + 1):
                self._mass[tokens[:end]] += probability

    def probability(self, tokens: Sequence[int]) -> float:
        """Of a text's tokens to begin with ``tokens``."""
        return self._mass.get(tuple(tokens), 0.0)

    @functools.cache  # noqa: B019 - lives as long as a test
    def log_probs(self, tokens: tuple[int, ...]) -> list[float]:
        """Of every next token."""
        here = self.probability(tokens)
        following = [self.probability((*tokens, token)) for token in range(self.vocab_size)]
        return [math.log(mass / here) if mass > 0 else -math.inf for mass in following]


def worked_example(length: int = 8) -> MarkovTexts:
    """The two-state chain of evaluation.md §4."""
    return MarkovTexts({"a": 0.6, "b": 0.4}, {"a": {"a": 0.5, "b": 0.5}, "b": {"a": 0.3, "b": 0.7}}, length)


def three_letters(length: int = 7) -> MarkovTexts:
    """A chain over a, b, c in which every transition has its own probability."""
    step = {
        "a": {"a": 0.2, "b": 0.5, "c": 0.3},
        "b": {"a": 0.35, "b": 0.25, "c": 0.4},
        "c": {"a": 0.45, "b": 0.4, "c": 0.15},
    }
    return MarkovTexts({"a": 0.5, "b": 0.3, "c": 0.2}, step, length)
