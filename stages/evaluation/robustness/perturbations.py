"""Misspellings: each changes some words of a text, as a function of a seed and of the words' places alone.

Kinds after TokSuite (arXiv 2512.20757), made here. Whether a word is changed is drawn once for a text, a kind and a
place, so that what is changed at a low severity is changed, in the same way, at a higher one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from random import Random

from stages.evaluation.robustness.excerpts import draws
from stages.evaluation.robustness.options import Perturbation

WORD = re.compile(r"[^\W\d_]{4,}")
"""What can be changed: words of letters alone, of four and more."""

_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_HOMOGLYPHS = dict(zip("aceiopsxyABCEHIKMOPSTXY", "асеіорѕхуАВСЕНІКМОРЅТХУ", strict=True))
_DIACRITICS = dict(zip("aeiouycnszAEIOUCNSZ", "áèïôüýçñšžÁÈÏÔÜÇÑŠŽ", strict=True))
_OCR = {
    **{"m": "rn", "w": "vv", "d": "cl", "l": "1", "o": "0", "i": "l", "e": "c", "s": "5", "b": "6", "g": "9"},
    **{"I": "l", "O": "0", "S": "5", "B": "8", "Z": "2"},
}


def perturb(text: str, kind: Perturbation, severity: float, *path: object) -> str:
    """The text with a share ``severity`` of its words changed, on average.

    Args:
        severity: in [0, 1]; 0 changes nothing.
        path: what the changes are a function of, beside kind and place: a seed, the text's id.
    """
    parts, done = [], 0
    for match, word in _changed(text, kind, severity, *path):
        parts += [text[done : match.start()], word]
        done = match.end()
    return "".join(parts) + text[done:]


def words_changed(text: str, kind: Perturbation, severity: float, *path: object) -> int:
    """How many words ``perturb`` makes others."""
    return sum(match[0] != word for match, word in _changed(text, kind, severity, *path))


def _changed(text: str, kind: Perturbation, severity: float, *path: object) -> Iterator[tuple[re.Match[str], str]]:
    """The words whose turn it is, and what becomes of them."""
    for place, match in enumerate(WORD.finditer(text)):
        rng = draws("noise", *path, kind, place)
        if rng.random() < severity:
            yield match, CHANGES[kind](match[0], rng)


def _swap(word: str, rng: Random) -> str:
    """Two neighbours that differ change places; the first letter stays where it can."""
    places = [place for place in range(len(word) - 1) if word[place] != word[place + 1]]
    places = [place for place in places if place] or places
    if not places:
        return word
    place = rng.choice(places)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _delete(word: str, rng: Random) -> str:
    place = rng.randrange(1, len(word))
    return word[:place] + word[place + 1 :]


def _duplicate(word: str, rng: Random) -> str:
    place = rng.randrange(len(word))
    return word[: place + 1] + word[place:]


def _keyboard(word: str, rng: Random) -> str:
    """A letter becomes its neighbour in a row of an English keyboard."""
    return _replace_one(word, rng, lambda letter: _neighbours(letter))


def _neighbours(letter: str) -> str:
    for row in _KEYBOARD:
        place = row.find(letter.lower())
        if place >= 0:
            near = row[max(0, place - 1) : place] + row[place + 1 : place + 2]
            return near.upper() if letter.isupper() else near
    return ""


def _case(word: str, rng: Random) -> str:
    return word.upper() if word != word.upper() else word.lower()


def _homoglyph(word: str, rng: Random) -> str:
    """Every letter that has a Cyrillic one of the same look becomes that."""
    return "".join(_HOMOGLYPHS.get(letter, letter) for letter in word)


def _diacritic(word: str, rng: Random) -> str:
    return _replace_one(word, rng, lambda letter: _DIACRITICS.get(letter, ""))


def _spacing(word: str, rng: Random) -> str:
    """A space within the word."""
    place = rng.randrange(1, len(word))
    return f"{word[:place]} {word[place:]}"


def _ocr(word: str, rng: Random) -> str:
    """A letter becomes what it may be read as on paper, two letters perhaps."""
    places = [place for place, letter in enumerate(word) if letter in _OCR]
    if not places:
        return word
    place = rng.choice(places)
    return word[:place] + _OCR[word[place]] + word[place + 1 :]


def _replace_one(word: str, rng: Random, choices: Callable[[str], str]) -> str:
    """A letter with ``choices`` becomes one of them; a word without such a letter stays."""
    places = [place for place, letter in enumerate(word) if choices(letter)]
    if not places:
        return word
    place = rng.choice(places)
    return word[:place] + rng.choice(choices(word[place])) + word[place + 1 :]


CHANGES: Mapping[Perturbation, Callable[[str, Random], str]] = {
    "swap": _swap,
    "delete": _delete,
    "duplicate": _duplicate,
    "keyboard": _keyboard,
    "case": _case,
    "homoglyph": _homoglyph,
    "diacritic": _diacritic,
    "spacing": _spacing,
    "ocr": _ocr,
}
"""Kind -> how it changes a word."""
