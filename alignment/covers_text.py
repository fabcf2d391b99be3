"""What may come after a text that stops anywhere, also inside a character: one text of every kind that matters.

Whether a token sequence can begin the encoding of a text may depend on what the text goes on with: GPT-2's pattern
gives the last of several spaces to the word after them. A pre-tokenizer sees classes of characters, so that one
continuation of each class stands for all.
"""

from __future__ import annotations

import functools
import sys
import unicodedata
from typing import NamedTuple

import numpy as np

APOSTROPHES = "'’"
_AFTER_TEXT = ("", "b", "B", "中", "0", "00", "000", " ", " b", "\n", "\nb", "!", "'")
_AFTER_APOSTROPHE = ("s", "t", "m", "d", "ll", "re", "ve", "l", "e")
_INCOMPLETE = "unexpected end of data"  # what Python says of bytes that more bytes could make a character of
_SURROGATES = range(0xD800, 0xE000)


class NotText(ValueError):
    """Bytes that no UTF-8 text begins with."""


class Split(NamedTuple):
    """A text that may stop inside a character: its whole characters, and the bytes of the character begun."""

    text: str
    rest: bytes


def split_text(data: bytes) -> Split:
    """Take the bytes of a character that is not complete off the end.

    Raises:
        NotText: no UTF-8 text begins with ``data``.
    """
    try:
        return Split(data.decode(), b"")
    except UnicodeDecodeError as error:
        if error.reason != _INCOMPLETE:
            raise NotText(
                f"no UTF-8 text begins with {data[-24:]!r}: {error.reason} at byte {error.start} of {len(data)}"
            ) from None
        return Split(data[: error.start].decode(), data[error.start :])


def begins_text(data: bytes) -> bool:
    """Whether some UTF-8 text begins with ``data``."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == _INCOMPLETE
    return True


def futures(text: str, rest: bytes) -> tuple[str, ...]:
    """Ways to go on after ``text`` and the bytes ``rest`` of a character begun, one of each kind."""
    if rest:
        return completions(rest)
    return (*_AFTER_TEXT, *_AFTER_APOSTROPHE) if any(mark in text[-2:] for mark in APOSTROPHES) else _AFTER_TEXT


@functools.lru_cache(maxsize=1 << 12)
def completions(rest: bytes) -> tuple[str, ...]:
    """One character of every kind among those whose UTF-8 begins with ``rest``, the beginning of a character."""
    size = 2 if rest[0] < 0xE0 else 3 if rest[0] < 0xF0 else 4
    number = rest[0] & 0x7F >> size
    for byte in rest[1:]:
        number = number << 6 | byte & 0x3F
    missing = 6 * (size - len(rest))
    # Shorter forms of what fewer bytes spell are no UTF-8.
    first = max(number << missing, (0x80, 0x800, 0x10000)[size - 2])
    last = min(number + 1 << missing, sys.maxunicode + 1)
    places = np.unique(_kinds()[first:last], return_index=True)[1]
    return tuple(chr(first + place) for place in places.tolist() if first + place not in _SURROGATES)


def kind_of(character: str) -> int:
    """What a pre-tokenizer tells apart: the general category, and whether it is white space; as a number."""
    return int(_kinds()[ord(character)])


@functools.cache
def _kinds() -> np.ndarray:
    """uint8: the kind of every code point."""
    numbers: dict[tuple[str, bool], int] = {}
    characters = map(chr, range(sys.maxunicode + 1))
    named = ((unicodedata.category(character), character.isspace()) for character in characters)
    return np.fromiter((numbers.setdefault(kind, len(numbers)) for kind in named), dtype=np.uint8)
