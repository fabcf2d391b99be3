"""What turns text into ids underneath a byte view: the `tokenizers` library, or a tokenizer in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from tokenizers import Tokenizer

from alignment.offsets import CharacterSpans, character_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizer


class Tokenized(NamedTuple):
    """The T tokens of one text.

    Attributes:
        ids: int32 [T].
        spans: gives the characters that each token was made from; None where the tokenizer does not tell.
        words: gives int64 [T], the word of each token, as the pre-tokenizer cuts them; None where the tokenizer does
            not tell.
    """

    ids: np.ndarray
    spans: Callable[[], CharacterSpans | None]
    words: Callable[[], np.ndarray | None]


class Backend(Protocol):
    """Two ways to read a text: as nothing but text, or as a rendered template with special tokens in it."""

    def tokenize(self, texts: Sequence[str], *, rendered: bool = False) -> list[Tokenized]:
        """Tokenize texts and add no special token.

        Args:
            rendered: the string of a special token is that token; otherwise it is text like any other.
        """
        ...


class FastBackend:
    """The `tokenizers` library; encodes a batch in parallel and knows where every token comes from."""

    def __init__(self, tokenizer: Tokenizer, *, true_offsets: bool = True) -> None:
        """Take a private tokenizer without post-processor, truncation and padding.

        Args:
            true_offsets: the model keeps count of all characters; BPE does not count those that it drops.
        """
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True
        self._true_offsets = true_offsets

    def __reduce__(self) -> tuple[Any, ...]:
        # `tokenizers` does not pickle its switch.
        return partial(FastBackend, true_offsets=self._true_offsets), (self._tokenizer,)

    @cached_property
    def _rendered(self) -> Tokenizer:
        return Tokenizer.from_str(self._tokenizer.to_str())

    def tokenize(self, texts: Sequence[str], *, rendered: bool = False) -> list[Tokenized]:
        """See ``Backend``."""
        tokenizer = self._rendered if rendered else self._tokenizer
        encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        spans_of = _spans_of if self._true_offsets else _no_spans
        return [
            Tokenized(np.array(encoding.ids, dtype=np.int32), spans_of(encoding), _words_of(encoding))
            for encoding in encodings
        ]


class PythonBackend:
    """A tokenizer that runs in Python. Only one with a SentencePiece processor knows where its tokens come from."""

    def __init__(self, tokenizer: PreTrainedTokenizer) -> None:
        self._tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str], *, rendered: bool = False) -> list[Tokenized]:
        """See ``Backend``."""
        return [self._tokenize(text, rendered) for text in texts]

    def _tokenize(self, text: str, rendered: bool) -> Tokenized:
        ids = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=not rendered, truncation=False, verbose=False
        ).input_ids
        return Tokenized(np.array(ids, dtype=np.int32), lambda: self._spans(text, rendered), lambda: None)

    def _spans(self, text: str, rendered: bool) -> CharacterSpans | None:
        processor = getattr(self._tokenizer, "sp_model", None)
        if processor is None:
            return None
        pieces = processor.encode(text, return_type="proto").pieces
        if [piece.piece for piece in pieces] != self._tokenizer.tokenize(text, split_special_tokens=not rendered):
            return None  # the tokenizer does more than its processor
        starts, ends = (
            np.array([getattr(piece, side) for piece in pieces], dtype=np.int64) for side in ("begin", "end")
        )
        return character_spans(np.frombuffer(text.encode(), np.uint8), starts, ends)


def _spans_of(encoding: Any) -> Callable[[], CharacterSpans]:
    def spans() -> CharacterSpans:
        offsets = encoding.offsets
        flat = np.fromiter(chain.from_iterable(offsets), dtype=np.int64, count=2 * len(offsets))
        return CharacterSpans(flat[::2], flat[1::2])

    return spans


def _words_of(encoding: Any) -> Callable[[], np.ndarray]:
    return lambda: np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)


def _no_spans(encoding: Any) -> Callable[[], None]:
    return lambda: None
