"""Tokens that no encoding gives: their text is always encoded otherwise.

Source: Land and Bartolo, Fishing for Magikarp, arXiv 2405.05417, §2.1: decode a token, encode the text again. Such
tokens are never trained, take rows, and are written by nobody who encodes text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment.byte_models import ByteModel
from alignment.byte_view import ByteView
from alignment.encoding import Encoding
from alignment.token_table import TokenKind

_CONTEXTS = (("", ""), *((letter, "") for letter in "qxzja1\n"), ("", "q"), ("q", "q"))
"""What is put around a token's text, one after the other: tokens that only continue a word, or only begin a text, are
not given by their text alone. Rare letters come first, as they seldom make a longer token with what follows."""


@dataclass(frozen=True)
class Reachability:
    """Which tokens of text encoding gives.

    Attributes:
        tested: tokens of text, whole and parts of characters; byte-fallback tokens, which only stand in where no other
            token fits, are not among them.
        unreachable: int64 [U], ids that encoding their own text did not give, alone or with a letter, a digit or a
            newline beside it; ascending.
        unreachable_parts: int64, ids of parts of characters that the merges never make of their bytes; ascending.
            Only byte-pair encoding is asked.
        untested_parts: parts of characters that could not be asked.
    """

    tested: int
    unreachable: np.ndarray
    unreachable_parts: np.ndarray
    untested_parts: int


def reachability(view: ByteView, model: ByteModel | None = None) -> Reachability:
    """Encode the text of every token of a vocabulary and see whether the token comes back.

    Args:
        model: the tokenizer's byte-pair model on bytes, which decides over parts of characters; None if it has none.
    """
    asked = np.flatnonzero(np.isin(view.kinds, [TokenKind.TEXT, TokenKind.ADDED]) & (view.byte_lengths > 0)).tolist()
    texts: dict[int, str] = {}
    parts: list[int] = []
    for token in asked:
        try:
            texts[token] = (view.token_bytes(token) or b"").decode()
        except UnicodeDecodeError:
            parts.append(token)
    pending = list(texts)
    for before, after in _CONTEXTS:
        encodings = view.encode_batch([before + texts[token] + after for token in pending], exact=False)
        begin = len(before.encode())
        pending = [
            token
            for token, encoding in zip(pending, encodings, strict=True)
            if not _gives(encoding, token, begin, begin + len(texts[token].encode()))
        ]
    unreachable_parts = [token for token in parts if model(view.token_bytes(token) or b"") != [token]] if model else []
    return Reachability(
        tested=len(texts) + (len(parts) if model else 0),
        unreachable=np.array(pending, dtype=np.int64),
        unreachable_parts=np.array(unreachable_parts, dtype=np.int64),
        untested_parts=0 if model else len(parts),
    )


def _gives(encoding: Encoding, token: int, begin: int, end: int) -> bool:
    """Whether the token spans exactly these bytes; a space that the tokenizer invents before a text is none."""
    if begin == 0 and len(encoding.ids) == 1:  # nearly all of them
        return int(encoding.ids[0]) == token
    starts = np.concatenate([[0], encoding.byte_ends[:-1]])
    return bool(((encoding.ids == token) & (starts == begin) & (encoding.byte_ends == end)).any())
