"""What kind of token each id is, as arrays over the vocabulary (embedding_init.md §0.1, rule 6)."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

import numpy as np

from alignment.byte_view import ByteView
from alignment.special_tokens import Roles
from alignment.token_table import TokenKind

_DIGITS = b"0123456789"
_SPACES = b" \t\n\v\f\r"
_WORD = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" + bytes(range(128, 256))
_RESERVED = re.compile(r" ?[<\[]\|?(\w*(?i:unused|reserved)\w*|SPECIAL_\d+)\|?[>\]]")
"""``<|reserved_special_token_7|>``, ``[unused12]``, ``<unused5>``, ``<SPECIAL_20>``"""


@dataclass(frozen=True)
class TokenFlags:
    """Properties of the V ids of a vocabulary. A token may have several; a missing id has none.

    Attributes:
        special: bool [V], control tokens.
        has_role: bool [V], special tokens that the tokenizer's configuration gives a role (bos, eos, eot, ...).
        word_start: bool [V], a space and then something else.
        continuation: bool [V], text that begins with an ASCII letter or digit or with any other character beyond ASCII:
            where no space goes before it, it continues a word.
        partial_utf8: bool [V], bytes that are no valid UTF-8: a part of a character.
        digit_length: int32 [V], number of digits of a token of ASCII digits only, after at most one space; else 0.
        whitespace: bool [V], nothing but white space (Unicode).
        added: bool [V], added to the vocabulary and not special.
        byte_fallback: bool [V], single bytes that are used only where nothing else fits.
        reserved: bool [V], tokens named as unused or reserved: their rows were never trained.
    """

    special: np.ndarray
    has_role: np.ndarray
    word_start: np.ndarray
    continuation: np.ndarray
    partial_utf8: np.ndarray
    digit_length: np.ndarray
    whitespace: np.ndarray
    added: np.ndarray
    byte_fallback: np.ndarray
    reserved: np.ndarray

    def masks(self) -> dict[str, np.ndarray]:
        """Name -> bool [V] of every flag; ``digits`` stands for a positive ``digit_length``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        digit_length = values.pop("digit_length")
        return values | {"digits": digit_length > 0}


def token_flags(view: ByteView, roles: Roles | None = None) -> TokenFlags:
    """The flags of a vocabulary.

    Args:
        roles: special tokens by role (``special_roles``).
    """
    tokens = [view.token_bytes(token) or b"" for token in range(view.vocab_size)]
    lengths = view.byte_lengths
    pool = np.frombuffer(b"".join(tokens), dtype=np.uint8)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    present = lengths > 0
    first = np.zeros(view.vocab_size, dtype=np.uint8)
    first[present] = pool[starts[present]]
    spaced = present & (first == ord(" "))

    def count(members: bytes) -> np.ndarray:
        sums = np.concatenate([[0], np.cumsum(_lookup(members)[pool])])
        return (sums[starts + lengths] - sums[starts]).astype(np.int32)

    digits = count(_DIGITS)
    partial, wide_space = _decode(tokens, np.flatnonzero(count(bytes(range(128, 256))) > 0))
    whitespace = (present & (count(_SPACES) == lengths)) | wide_space
    return TokenFlags(
        special=view.kinds == TokenKind.SPECIAL,
        has_role=np.isin(np.arange(view.vocab_size), [*(roles or {}).values()]),
        word_start=spaced & ~whitespace,
        continuation=present & _lookup(_WORD)[first] & ~whitespace,
        partial_utf8=partial,
        digit_length=np.where(digits == lengths - spaced, digits, 0).astype(np.int32),
        whitespace=whitespace,
        added=view.kinds == TokenKind.ADDED,
        byte_fallback=view.kinds == TokenKind.BYTE_FALLBACK,
        reserved=_reserved(view, tokens),
    )


def _lookup(members: bytes) -> np.ndarray:
    """bool [256]: whether each byte is one of ``members``."""
    table = np.zeros(256, dtype=bool)
    table[list(members)] = True
    return table


def _decode(tokens: list[bytes], candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [V] each: the candidates that are no UTF-8, and those that are white space."""
    partial, space = np.zeros((2, len(tokens)), dtype=bool)
    for token in candidates.tolist():
        try:
            space[token] = tokens[token].decode().isspace()
        except UnicodeDecodeError:
            partial[token] = True
    return partial, space


def _reserved(view: ByteView, tokens: list[bytes]) -> np.ndarray:
    reserved = np.zeros(view.vocab_size, dtype=bool)
    for token, data in enumerate(tokens):
        if data[-1:] in (b">", b"]") and _RESERVED.fullmatch(data.decode(errors="replace")):
            reserved[token] = True
    for token, string in view.special_tokens.items():
        reserved[token] = _RESERVED.fullmatch(string) is not None
    return reserved
