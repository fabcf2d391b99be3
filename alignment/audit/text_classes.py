"""Every byte of a text put into a class: words by script, numerals by length, white space by kind, punctuation.

The classes partition the text. Three rules make them match what tokenizers do:

* a single space before anything but white space counts with what follows it, as subword tokenizers attach it;
* combining marks count with the character that they modify;
* digits count by the length of the run that they stand in.

Beside its class, every byte is prose or code: code where at least 6 % of a paragraph's visible characters are brackets
and operators. A paragraph ends at a blank line.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import numpy as np

SCRIPTS = (
    *("latin", "greek", "cyrillic", "armenian", "hebrew", "arabic", "syriac", "thaana", "nko", "devanagari", "bengali"),
    *("gurmukhi", "gujarati", "oriya", "tamil", "telugu", "kannada", "malayalam", "sinhala", "thai", "lao", "tibetan"),
    *("myanmar", "georgian", "hangul", "ethiopic", "cherokee", "canadian", "khmer", "mongolian", "hiragana"),
    *("katakana", "bopomofo", "han", "yi"),
)
"""The scripts told apart, by the first word of Unicode's character names; letters of others are ``other letters``."""

NUMERALS = ("numerals of 1 digit", "numerals of 2 digits", "numerals of 3 digits", "numerals of 4 digits")
LONG_NUMERALS = "numerals of 5 digits and more"
WHITE_SPACE = ("indentation", "space runs", "tabs", "newlines", "other white space")
CLASSES = (*NUMERALS, LONG_NUMERALS, *WHITE_SPACE, "punctuation", "symbols", "other", "other letters", *SCRIPTS)
"""Names of all classes; a class is an index into them."""

CODE_DENSITY = 0.06
_CODE_CHARACTERS = "()[]{}<>=_+*/\\|&;#$%^~@"
_SPACE = 0x20
_ASSIGNED = (range(0x40000), range(0xE0000, 0xE1000))  # Unicode gives the other planes no characters
_SCRIPT_WORDS = {"CJK": "han", "IDEOGRAPHIC": "han"}
_WIDTH_WORDS = ("FULLWIDTH", "HALFWIDTH")


class _Kind(IntEnum):
    """What a code point is by itself; letters have ``LETTER`` plus the index of their script."""

    DIGIT = 0
    SPACE = 1
    TAB = 2
    NEWLINE = 3
    OTHER_SPACE = 4
    PUNCTUATION = 5
    SYMBOL = 6
    OTHER = 7
    MARK = 8
    OTHER_LETTER = 9
    LETTER = 10


class ClassifiedText(NamedTuple):
    """Some documents' UTF-8 bytes, one after the other.

    Attributes:
        text: uint8 [N], the bytes.
        classes: uint8 [N], an index into ``CLASSES`` for each byte.
        code: bool [N], bytes of paragraphs that look like program code.
        starts: int64 [D + 1], where each document starts, and N.
    """

    text: np.ndarray
    classes: np.ndarray
    code: np.ndarray
    starts: np.ndarray

    @property
    def in_word(self) -> np.ndarray:
        """bool [N]: bytes of letters, marks and digits."""
        return _IS_WORD[self.classes] & (self.text != _SPACE)


def classify(texts: Sequence[str]) -> ClassifiedText:
    """Classify every byte of some documents, none of which touches another.

    Raises:
        UnicodeEncodeError: a text has a lone surrogate.
    """
    encoded = [text.encode() for text in texts]
    # A newline around every document keeps runs apart; it is repeated 0 times below.
    joined = "".join(f"\n{text}" for text in texts) + "\n"
    codes = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
    separators = np.cumsum([0, *(len(text) + 1 for text in texts)])
    sizes = np.ones(len(codes), dtype=np.uint8)
    if not joined.isascii():
        for first_code in (0x80, 0x800, 0x10000):
            sizes += codes >= first_code
    sizes[separators] = 0
    kinds = _kinds()[codes]
    return ClassifiedText(
        text=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        classes=np.repeat(_classes(kinds), sizes),
        code=np.repeat(_code(codes, kinds, separators), sizes),
        starts=np.cumsum([0, *map(len, encoded)]),
    )


@cache
def _kinds() -> np.ndarray:
    """uint8 [0x110000]: the ``_Kind`` of every code point."""
    kinds = np.full(0x110000, _Kind.OTHER, dtype=np.uint8)
    for block in _ASSIGNED:
        kinds[block.start : block.stop] = [_kind(chr(code)) for code in block]
    return kinds


def _kind(character: str) -> int:
    if character in _KIND_OF_CHARACTER:
        return _KIND_OF_CHARACTER[character]
    category = unicodedata.category(character)
    if category[0] in "LM":
        return _script(character, category)
    return _KIND_OF_CATEGORY.get(category, _KIND_OF_CATEGORY.get(category[0], _Kind.OTHER))


def _script(character: str, category: str) -> int:
    """``LETTER`` plus the script that the name of a letter or mark begins with; generic marks modify any script."""
    words = unicodedata.name(character, "").replace("-", " ").split()
    words = words[1:] if words and words[0] in _WIDTH_WORDS else words
    first = words[0] if words else ""
    script = _SCRIPT_WORDS.get(first, first.lower())
    if script in SCRIPTS:
        return _Kind.LETTER + SCRIPTS.index(script)
    return _Kind.MARK if category[0] == "M" else _Kind.OTHER_LETTER


def _classes(kinds: np.ndarray) -> np.ndarray:
    """uint8 [characters]: the class of each character in its context."""
    classes = _CLASS_OF_KIND[kinds]
    starts, ends = _runs(kinds == _Kind.DIGIT)
    lengths = ends - starts
    classes[kinds == _Kind.DIGIT] = np.repeat(np.minimum(lengths, len(NUMERALS) + 1) - 1, lengths)
    marks = kinds == _Kind.MARK
    if marks.any():
        bearer = np.maximum.accumulate(np.where(marks, 0, np.arange(len(kinds))))
        # A mark without a visible character before it modifies nothing.
        classes = np.where(marks & _IS_WHITE_SPACE[classes[bearer]], _OTHER, classes[bearer])
    starts, ends = _runs(kinds == _Kind.SPACE)
    attached = (ends - starts == 1) & ~_IS_WHITE_SPACE[classes[ends]]
    run_class = np.where(kinds[starts - 1] == _Kind.NEWLINE, _INDENTATION, _SPACE_RUNS)
    classes[kinds == _Kind.SPACE] = np.repeat(np.where(attached, classes[ends], run_class), ends - starts)
    return classes


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of the runs of True in a mask that begins and ends with False."""
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    return edges[::2], edges[1::2]


def _code(codes: np.ndarray, kinds: np.ndarray, separators: np.ndarray) -> np.ndarray:
    """bool [characters]: those of paragraphs dense in code's characters."""
    newlines = kinds == _Kind.NEWLINE
    begins = np.flatnonzero(newlines[:-1] & newlines[1:]) + 1
    begins = np.union1d(begins, separators[:-1])
    visible = ~_IS_WHITE_KIND[kinds]
    operators = _IS_CODE[np.minimum(codes, len(_IS_CODE) - 1)]
    dense = np.add.reduceat(operators, begins, dtype=np.int64) >= CODE_DENSITY * np.maximum(
        np.add.reduceat(visible, begins, dtype=np.int64), 1
    )
    return np.repeat(dense, np.diff(begins, append=len(codes)))


_KIND_OF_CHARACTER = {
    " ": _Kind.SPACE,
    "\t": _Kind.TAB,
    **dict.fromkeys("\n\r\u2028\u2029", _Kind.NEWLINE),
    **dict.fromkeys("\v\f\x1c\x1d\x1e\x1f\x85", _Kind.OTHER_SPACE),
}
_KIND_OF_CATEGORY = {"Nd": _Kind.DIGIT, "Zs": _Kind.OTHER_SPACE, "P": _Kind.PUNCTUATION, "S": _Kind.SYMBOL}
_KIND_OF_CATEGORY |= {"Nl": _Kind.SYMBOL, "No": _Kind.SYMBOL}

_INDENTATION, _SPACE_RUNS = CLASSES.index("indentation"), CLASSES.index("space runs")
_OTHER, _OTHER_LETTERS = CLASSES.index("other"), CLASSES.index("other letters")
_FIRST_SCRIPT = len(CLASSES) - len(SCRIPTS)

_CLASS_NAME_OF_KIND = {
    _Kind.DIGIT: NUMERALS[0],
    _Kind.SPACE: "space runs",
    _Kind.TAB: "tabs",
    _Kind.NEWLINE: "newlines",
    _Kind.OTHER_SPACE: "other white space",
    _Kind.PUNCTUATION: "punctuation",
    _Kind.SYMBOL: "symbols",
    _Kind.OTHER: "other",
    _Kind.MARK: "other",
    _Kind.OTHER_LETTER: "other letters",
}
_CLASS_OF_KIND = np.array(
    [CLASSES.index(_CLASS_NAME_OF_KIND[kind]) for kind in _Kind if kind != _Kind.LETTER]
    + list(range(_FIRST_SCRIPT, len(CLASSES))),
    dtype=np.uint8,
)
_IS_WHITE_SPACE = np.isin(np.array(CLASSES), WHITE_SPACE)
_IS_WORD = np.isin(np.array(CLASSES), (*NUMERALS, LONG_NUMERALS, "other letters", *SCRIPTS))
_IS_WHITE_KIND = np.array([_Kind.SPACE <= kind <= _Kind.OTHER_SPACE for kind in range(len(_CLASS_OF_KIND))])
_IS_CODE = np.isin(np.arange(129), [ord(character) for character in _CODE_CHARACTERS])
