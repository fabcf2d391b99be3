"""Tokens that differ only in case, Unicode compatibility form or a leading space: matched if the user says so."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from typing import Literal

from alignment.byte_view import ByteView
from alignment.token_codecs import UnsupportedTokenizer
from alignment.token_index import TokenIndex
from alignment.token_table import TokenKind

Fold = Literal["case", "nfkc", "space"]
"""What to overlook: letter case, Unicode compatibility forms (NFKC), one space at the start of a token."""

_PROBE = "ABC"


def fold_bytes(data: bytes, folds: Collection[Fold]) -> bytes | None:
    """``data`` without what ``folds`` overlooks; None if it is no text."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    if "nfkc" in folds:
        text = unicodedata.normalize("NFKC", text)
    if "case" in folds:
        text = text.lower()
    if "space" in folds and len(text) > 1:
        text = text.removeprefix(" ")
    return text.encode()


def folded_index(source: TokenIndex, folds: Collection[Fold]) -> dict[bytes, int]:
    """Folded bytes -> the lowest id of those that fold to them; byte-fallback tokens are no text and left out."""
    ids: dict[bytes, int] = {}
    for token in range(source.rows):
        if source.view.kinds[token] in (TokenKind.TEXT, TokenKind.ADDED):
            folded = fold_bytes(source.view.token_bytes(token) or b"", folds)
            if folded:
                ids.setdefault(folded, token)
    return ids


def lower_cases(view: ByteView) -> bool:
    """Whether a tokenizer turns capitals into small letters, found by encoding some; False for one that cannot."""
    try:
        ids = view.encode(_PROBE, exact=False).ids.tolist()
    except UnsupportedTokenizer:  # built from token bytes alone
        return False
    spelled = b"".join(view.token_bytes(token) or b"" for token in ids)
    return spelled.strip() == _PROBE.lower().encode()
