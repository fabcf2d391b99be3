"""Vectors of a tokenizer's own tokens, trained on text as fastText trains those of words (embedding_init.md §1.6).

A token is a word of the model, its characters give the n-grams, and what the tokenizer makes of a document are
sentences. Tokens that spell the same bytes share a vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.byte_view import ByteView

_SENTENCE_TOKENS = 1024  # as in fastText; gensim drops what lies beyond 10,000
_BUCKETS = 1 << 18  # of n-grams: a vocabulary has far fewer of them than a language, for whose words fastText has 2^21
_LONE_BYTES = {0xDC00 + byte: 0x10FF00 + byte for byte in range(0x80, 0x100)}


@dataclass(frozen=True)
class TrainingOptions:
    """How vectors are trained; the defaults are those of the FOCUS paper.

    Attributes:
        dimensions: length of a vector.
        epochs: passes over the text.
        min_count: tokens that occur less often get no vector.
        negative: tokens drawn to tell a token from.
        window: how far the context reaches on either side.
        seed: any integer.
    """

    dimensions: int = 100
    epochs: int = 3
    min_count: int = 10
    negative: int = 10
    window: int = 5
    seed: int = 0


def spellings(view: ByteView) -> list[str | None]:
    """What each token id is called in the model; None for one that spells nothing.

    A byte that is part of no whole character becomes a character for private use, so that no two tokens that differ
    are called the same.
    """
    tokens = [view.token_bytes(token) for token in range(view.vocab_size)]
    return [token.decode("utf-8", "surrogateescape").translate(_LONE_BYTES) if token else None for token in tokens]


def train_token_vectors(
    names: Sequence[str | None],
    documents: Sequence[np.ndarray],
    options: TrainingOptions,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """The vectors, float32 [V, A], of the V tokens called ``names``; zero for those that have none.

    fastText's CBOW model with character n-grams of 3 to 6 and its other defaults, by gensim, in a single thread: the
    same text gives the same bytes, whatever ids its tokens have.

    Args:
        documents: token ids of each, integers [T].
        should_stop: asked now and then; once it says True training ends early, and what is returned is worth nothing.

    Raises:
        ValueError: no token occurs often enough.
    """
    from gensim.models import FastText

    sentences = _Sentences(names, documents, should_stop)
    frequencies = _frequencies(names, documents)
    if max(frequencies.values(), default=0) < options.min_count:
        raise ValueError(f"none of {len(frequencies)} different tokens occurs {options.min_count} times in the text")
    model = FastText(
        vector_size=options.dimensions,
        window=options.window,
        min_count=options.min_count,
        negative=options.negative,
        alpha=0.05,
        sample=1e-4,
        bucket=_BUCKETS,
        seed=options.seed % (1 << 32),
        workers=1,
    )
    model.build_vocab_from_freq(frequencies, corpus_count=len(sentences))
    model.train(sentences, total_examples=len(sentences), total_words=sum(frequencies.values()), epochs=options.epochs)
    vectors = np.zeros((len(names), options.dimensions), dtype=np.float32)
    known = [token for token, name in enumerate(names) if name in model.wv.key_to_index]
    vectors[known] = model.wv.vectors[[model.wv.key_to_index[names[token]] for token in known]]
    return vectors


def training_bytes(vocabulary: int, dimensions: int) -> int:
    """What the model takes at most, beside the text: input, output and composed vectors, and those of the n-grams."""
    return 4 * dimensions * (3 * vocabulary + _BUCKETS)


class _Sentences:
    """The documents in pieces that gensim takes whole, each as a list of names; may be gone through again."""

    def __init__(
        self, names: Sequence[str | None], documents: Sequence[np.ndarray], should_stop: Callable[[], bool]
    ) -> None:
        self._names = names
        self._should_stop = should_stop
        self._pieces = [
            document[start : start + _SENTENCE_TOKENS]
            for document in documents
            for start in range(0, len(document), _SENTENCE_TOKENS)
        ]

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[list[str]]:
        # gensim goes through this in a thread of its own, where an exception would leave it waiting for ever.
        for piece in self._pieces:
            if self._should_stop():
                return
            yield [name for token in piece.tolist() if (name := self._names[token]) is not None]


def _frequencies(names: Sequence[str | None], documents: Sequence[np.ndarray]) -> dict[str, int]:
    """How often each name occurs, in the order of the names, which settles the order of equally frequent ones."""
    counts = np.zeros(len(names), dtype=np.int64)
    for document in documents:
        counts += np.bincount(document, minlength=len(names))
    found: Counter[str] = Counter()
    for token in np.flatnonzero(counts).tolist():
        if (name := names[token]) is not None:
            found[name] += int(counts[token])
    return dict(sorted(found.items()))
