"""The tokens of many documents in flat arrays, so that one vectorised pass finds every boundary they offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignment.encoding import Encoding


@dataclass(frozen=True)
class FlatTokens:
    """One side's tokens of D documents, T in all, one document after the other.

    Attributes:
        side: "teacher" or "student", for messages.
        ends: int64 [T], the byte offset of each token's end in its own document.
        special: bool [T], tokens that stand for no byte.
        boundary: bool [T], False for tokens inside a stretch, as in ``Encoding``.
        splits: int64 [D + 1], where each document's tokens begin, and T.
        text_bytes: int64 [D], the length of each document's text.
    """

    side: str
    ends: np.ndarray
    special: np.ndarray
    boundary: np.ndarray
    splits: np.ndarray
    text_bytes: np.ndarray

    @classmethod
    def join(cls, side: str, encodings: Sequence[Encoding]) -> FlatTokens:
        """The tokens of the documents, one after the other; at least one document."""
        splits = np.zeros(len(encodings) + 1, dtype=np.int64)
        np.cumsum([len(encoding.ids) for encoding in encodings], out=splits[1:])
        return cls(
            side,
            np.concatenate([encoding.byte_ends for encoding in encodings]),
            np.concatenate([encoding.special for encoding in encodings]),
            np.concatenate([encoding.boundary for encoding in encodings]),
            splits,
            np.array([encoding.text_bytes for encoding in encodings], dtype=np.int64),
        )


@dataclass(frozen=True)
class Boundaries:
    """Where the same tokens allow a chunk to end, in the bytes of all documents, one after the other.

    Attributes:
        ends: int64 [T], the last offset up to each token's end that is known to be a boundary.
        closes: bool [T], tokens that end there, later than every token before them.
        in_text: bool [T], tokens that stand for text, and so belong to the chunk around them.
    """

    ends: np.ndarray
    closes: np.ndarray
    in_text: np.ndarray


def find_boundaries(tokens: FlatTokens, bases: np.ndarray) -> Boundaries:
    """Find the boundaries that the tokens offer, given int64 [D]: where the bytes of each document begin.

    Raises:
        ValueError: offsets decrease, are negative or beyond the text, or a special token spans bytes.
    """
    _check_last(tokens)
    starts = bases.repeat(tokens.splits[1:] - tokens.splits[:-1])
    ends = tokens.ends + starts
    closes = _compared(np.greater, ends, tokens.splits, bases)
    _check(tokens, _compared(np.less, ends, tokens.splits, bases), closes)
    if tokens.boundary.all():
        return Boundaries(ends, closes, closes)
    offers = tokens.boundary & ~tokens.special
    ends = np.maximum.accumulate(np.where(offers, ends, starts))
    closes = _compared(np.greater, ends, tokens.splits, bases)
    return Boundaries(ends, closes, closes | ~(tokens.boundary | tokens.special))


def _compared(compare: np.ufunc, ends: np.ndarray, splits: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """bool [T]: each token's end compared with the end of the token before it, or with its document's start."""
    result = np.empty(len(ends), dtype=bool)
    compare(ends[1:], ends[:-1], out=result[1:])
    full = splits[1:] > splits[:-1]
    firsts = splits[:-1][full]
    result[firsts] = compare(ends[firsts], bases[full])
    return result


def _check(tokens: FlatTokens, decreases: np.ndarray, spans: np.ndarray) -> None:
    if decreases.any():
        place, index, end = _place(tokens, decreases)
        raise ValueError(
            f"{place}{tokens.side}_ends must start at 0 or more and never decrease, but token {index} ends at {end}"
        )
    text_specials = tokens.special & spans
    if text_specials.any():
        place, index, end = _place(tokens, text_specials)
        raise ValueError(
            f"{place}special {tokens.side} token {index} spans bytes up to {end}: special tokens stand for no text, so "
            "its string was counted as text and every later offset is wrong"
        )


def _check_last(tokens: FlatTokens) -> None:
    last = tokens.splits[1:][tokens.splits[1:] > tokens.splits[:-1]] - 1
    beyond = tokens.ends[last] > tokens.text_bytes[tokens.splits[1:] > tokens.splits[:-1]]
    if beyond.any():
        wrong = np.zeros(len(tokens.ends), dtype=bool)
        wrong[last[beyond]] = True
        place, index, end = _place(tokens, wrong)
        raise ValueError(f"{place}{tokens.side} token {index} ends at byte {end}, beyond the end of the text")


def _place(tokens: FlatTokens, wrong: np.ndarray) -> tuple[str, int, int]:
    """For a message on the first wrong token: its document if there are several, its index there, and its end."""
    token = int(np.argmax(wrong))
    document = int(np.searchsorted(tokens.splits, token, side="right")) - 1
    prefix = f"document {document}: " if len(tokens.splits) > 2 else ""
    return prefix, token - int(tokens.splits[document]), int(tokens.ends[token])
