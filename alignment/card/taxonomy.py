"""What the entries of a vocabulary are: the classes of Qtok, and the script of every token of letters.

Source: Qtok (nup-csai/Qtok), evaluation.md §9. Qtok reads vocabulary files; here the entries are the tokenizer's own
bytes. Its class ``pure_unicode`` takes in ordinary letters, since they are in GPT-2's alphabet of bytes: the class is
kept, so that tables compare, but such letters count for their script.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from alignment.audit.text_classes import CLASSES, SCRIPTS, classify
from alignment.byte_view import ByteView
from alignment.token_codecs import byte_alphabet
from alignment.token_table import TokenKind

Position = Literal["char", "spaced", "inner"]
POSITIONS: tuple[Position, ...] = ("char", "spaced", "inner")
"""A single character; a space and what follows it; anything else."""

TOKEN_CLASSES = (
    "pure_unicode",
    *(f"{position}_{kind}" for position in POSITIONS for kind in ("alpha", "other", "errors")),
    "control_tokens",
    "unicode_flanks",
)
"""``alpha``: letters of one script. ``errors``: a character without a Unicode name, such as a newline.
``unicode_flanks``: bytes that are no valid UTF-8."""

_BYTE_CHARACTERS = frozenset(byte_alphabet())
_CONTROL = re.compile(r"<(?P<tag>[^<>]+)>|\[[^\[\]]+\]", re.DOTALL)
_HTML_TAG = re.compile(r"/?(br|h[1-6]|b|img|li|tr|td|p|th|u|em)/?")
_SCRIPT_OF_CLASS = [name if name in SCRIPTS else None for name in CLASSES]


class Entry(NamedTuple):
    """One vocabulary entry: its class, and the script that all of its letters have, if it is letters alone."""

    token_class: str
    script: str | None


@dataclass(frozen=True)
class Taxonomy:
    """How many entries of a vocabulary are what. Ids that the tokenizer does not have count nowhere.

    Attributes:
        entries: all entries.
        classes: class -> entries, every class of ``TOKEN_CLASSES``.
        letters: script -> position -> entries of letters of that script alone, the most frequent script first.
    """

    entries: int
    classes: Mapping[str, int]
    letters: Mapping[str, Mapping[Position, int]]

    @property
    def script_shares(self) -> dict[str, float]:
        """Script -> share of all entries that are letters of that script alone."""
        return {script: sum(places.values()) / self.entries for script, places in self.letters.items()}


def taxonomy(view: ByteView) -> Taxonomy:
    """Classify the vocabulary of a tokenizer."""
    spellings = [view.token_bytes(token) for token in np.flatnonzero(view.kinds != TokenKind.MISSING).tolist()]
    entries = [entry for entry in classify_tokens([data for data in spellings if data is not None])]
    entries += [Entry("control_tokens", None)] * len(view.special_tokens)
    counts = Counter(entry.token_class for entry in entries)
    letters: dict[str, Counter[Position]] = {}
    for entry in entries:
        if entry.script is not None:
            letters.setdefault(entry.script, Counter())[_position(entry.token_class)] += 1
    order = sorted(letters, key=lambda script: (-letters[script].total(), script))
    return Taxonomy(
        entries=len(entries),
        classes={name: counts[name] for name in TOKEN_CLASSES},
        letters={script: {place: letters[script][place] for place in POSITIONS} for script in order},
    )


def classify_tokens(tokens: Sequence[bytes]) -> list[Entry]:
    """The class and the script of each token, given its bytes."""
    texts = [_decoded(token) for token in tokens]
    scripts = iter(_scripts([text for text in texts if text]))
    return [
        Entry("unicode_flanks", None) if text is None else _entry(text, next(scripts) if text else None)
        for text in texts
    ]


def language_shares(languages: Iterable[Iterable[str]]) -> dict[str, float]:
    """Language -> its share of some tokens, each of which counts in equal parts for all of its languages.

    Shares are of the tokens that have a language, so that they sum to 1. Qtok divides by the number of pairs of a token
    and a language instead, and its shares sum to less (evaluation.md §9).

    Args:
        languages: the languages of each token, each once; none for a token of no language.
    """
    shares: Counter[str] = Counter()
    tokens = 0
    for names in map(tuple, languages):
        tokens += bool(names)
        for name in names:
            shares[name] += 1 / len(names)
    return {name: share / tokens for name, share in shares.most_common()}


def _entry(text: str, script: str | None) -> Entry:
    if len(text) == 1 and text in _BYTE_CHARACTERS:
        return Entry("pure_unicode", script)
    spaced = text.startswith(" ") and len(text) > 1
    if not spaced and _is_control(text):
        return Entry("control_tokens", None)
    position = "spaced" if spaced else "char" if len(text) == 1 else "inner"
    if script is not None:
        return Entry(f"{position}_alpha", script)
    named = all(unicodedata.name(character, "") for character in text)
    return Entry(f"{position}_{'other' if named else 'errors'}", None)


def _is_control(text: str) -> bool:
    match = _CONTROL.fullmatch(text)
    return match is not None and not (match["tag"] and _HTML_TAG.fullmatch(match["tag"]))


def _position(token_class: str) -> Position:
    return next((place for place in POSITIONS if token_class.startswith(place)), "char")


def _scripts(texts: Sequence[str]) -> list[str | None]:
    """The one script of each text, which is not empty; a space before letters is left out of account."""
    if not texts:
        return []
    classified = classify(texts)
    lowest = np.minimum.reduceat(classified.classes, classified.starts[:-1])
    highest = np.maximum.reduceat(classified.classes, classified.starts[:-1])
    return [
        _SCRIPT_OF_CLASS[low] if low == high else None
        for low, high in zip(lowest.tolist(), highest.tolist(), strict=True)
    ]


def _decoded(token: bytes) -> str | None:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None
