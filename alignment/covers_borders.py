"""Where a pre-tokenizer cuts a text that goes on with a token: what byte-pair encoding may not merge across.

The pre-tokenizer itself is asked, on text in which characters that it cannot tell apart are replaced by one of their
kind, so that one answer serves many texts and tokens. That is exact for patterns that name classes of characters, and
letters only in English contractions ('s, 're, …); other pre-tokenizers are refused here (``reads_classes_only``).

Legend: V vocabulary, K kinds of tokens.
"""

from __future__ import annotations

import json
import re
import string
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alignment.covers_text import APOSTROPHES, begins_text, futures, kind_of, split_text

Cuts = Callable[[str], set[int]]
"""Text -> the characters at which a pre-token begins, the first one left out."""

_KEPT_RUN = 3  # of one letter: patterns count digits, never letters
_LONG_RUN = re.compile(rf"([^\W\d_])\1{{{_KEPT_RUN},}}")
_CONTRACTED = frozenset("strevmld")
_AFTER_APOSTROPHE = ("'", "'b")
_KEPT_CONTEXTS = 4096
_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # is not in the file
_CONTRACTIONS = ("'s|'t|'re|'ve|'m|'ll|'d", "(?i:[sdmt]|ll|ve|re)")
_CLASSES = re.compile(r"\\[pP]\{(?:L|Lu|Ll|Lt|Lm|Lo|M|Mn|Mc|Me|N|Nd|Nl|No|P|S|Z)\}|\\[sSdDrnt]")
_COUNTED = re.compile(r"(?<=N\})\{\d+(?:,\d*)?\}|(?<=\\d)\{\d+(?:,\d*)?\}")


def reads_classes_only(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether a pre-tokenizer, as tokenizer.json has it, cuts by classes of characters and contractions alone.

    Nor may it look behind, change the text, or count anything but digits.
    """
    if pre_tokenizer is None:
        return True
    match pre_tokenizer["type"]:
        case "Sequence":
            return all(map(reads_classes_only, pre_tokenizer["pretokenizers"]))
        case "ByteLevel":
            return not pre_tokenizer["add_prefix_space"]
        case "Digits":
            return True
        case "Split":
            pattern = pre_tokenizer["pattern"]
            return pre_tokenizer["behavior"] != "Removed" and "Regex" in pattern and _of_classes(pattern["Regex"])
    return False


def _of_classes(pattern: str) -> bool:
    if "(?<" in pattern:
        return False
    rest = _CLASSES.sub("", _COUNTED.sub("", pattern))
    for contractions in _CONTRACTIONS:
        rest = rest.replace(contractions, "")
    rest = rest.replace("(?i:", "(")
    return rest.isascii() and not re.search(r"[A-Za-z0-9{}\\]", rest.replace("\\/", "/"))


def signs_named(pre_tokenizer: Mapping[str, Any]) -> str:
    """The ASCII signs in a pre-tokenizer's patterns, those of the patterns' own syntax among them."""
    return "".join(sign for sign in string.punctuation if sign in json.dumps(pre_tokenizer) + _BYTE_LEVEL)


class Reduced(NamedTuple):
    """A text with characters replaced by one of their kind; ``places`` are their indices in the text."""

    text: str
    places: Sequence[int]


class _Outcome(NamedTuple):
    """How a text goes on to be cut: at which of its own characters, right after it, and inside the token after it."""

    inside: frozenset[int]
    between: bool
    within: bool


class _Context(NamedTuple):
    """What is known of one reduced text: outcomes, and for each kind of token the set of them as bits; 0 is unknown."""

    outcomes: list[_Outcome]
    bits: np.ndarray


class _Representatives(dict[int, str]):
    """Code point -> the character that stands for all of its kind, for ``str.translate``."""

    def __init__(self, literal: str) -> None:
        self._literal = literal
        self._of_kind: dict[int, str] = {}

    def __missing__(self, point: int) -> str:
        character = chr(point)
        if character.isascii() and character.isalpha():
            found = "b" if character.islower() else "B"
        elif character.isascii() and character.isdigit():
            found = "0"
        elif character in self._literal or character in APOSTROPHES or (character.isascii() and character.isspace()):
            found = character
        else:
            found = self._of_kind.setdefault(kind_of(character), character)
        self[point] = found
        return found


def _with_contractions(text: str, reduced: str) -> str:
    """``reduced`` with those letters of ``text`` that may be a contraction's: one or two after an apostrophe."""
    characters = list(reduced)
    for place, character in enumerate(text):
        if character.casefold() in _CONTRACTED and any(mark in text[max(0, place - 2) : place] for mark in APOSTROPHES):
            characters[place] = character
    return "".join(characters)


class Borders:
    """A pre-tokenizer's cuts around every token of a vocabulary.

    Args:
        cuts: the pre-tokenizer.
        token_bytes: [V], None for tokens without bytes.
        literal: the signs that its patterns may name; of all others they know the class alone.
    """

    def __init__(self, cuts: Cuts, token_bytes: Sequence[bytes | None], *, literal: str = string.punctuation) -> None:
        self.cuts = cuts
        self._representatives = _Representatives(literal)
        self._kinds: dict[tuple[str, bytes], int] = {}
        # The first letters of a token are told apart only where an apostrophe stands one or two characters before.
        self._kind_of_token = self._classify(token_bytes)
        self._contexts: OrderedDict[tuple[str, int], _Context] = OrderedDict()

    def allowed(
        self, text: str, edges: Sequence[int], forced: Sequence[int], tokens: np.ndarray, pairs: np.ndarray
    ) -> np.ndarray:
        """Which tokens may come after a text that was cut into tokens.

        Args:
            text: from a place on where a pre-token begins.
            edges: characters of ``text`` at which its tokens begin, the first one left out.
            forced: those edges that the merges do not allow, so that a pre-token must begin there.
            tokens: int64 [N], none of them beginning inside a character.
            pairs: bool [N], whether the merges allow the token after the last one.

        Returns:
            bool [N]: some text that begins so is cut so.
        """
        reduced = self._reduce(text)
        near = [place for place in (1, 2) if len(text) >= place and text[-place] in APOSTROPHES]
        variant = near[0] if near else 0
        kinds = self._kind_of_token[variant][tokens]
        context = self._context(reduced.text, variant, kinds)
        with_border = without = 0
        for number, outcome in enumerate(context.outcomes):
            inside = {reduced.places[place] for place in outcome.inside}
            if not outcome.within and inside <= set(edges) and inside >= set(forced):
                with_border |= outcome.between << number
                without |= (not outcome.between) << number
        bits = context.bits[kinds]
        return (bits & with_border > 0) | ((bits & without > 0) & pairs)

    def _classify(self, token_bytes: Sequence[bytes | None]) -> np.ndarray:
        """int64 [3, V]: the kind of every token, after an apostrophe 0 (none), 1 or 2 characters before."""
        kinds = np.zeros((1 + len(_AFTER_APOSTROPHE), len(token_bytes)), dtype=np.int64)
        for token, data in enumerate(token_bytes):
            if not data or not begins_text(data):
                continue  # never asked for: no text goes on with it at the beginning of a character
            text, rest = split_text(data)
            alone = self._reduce(text).text
            for variant, before in enumerate(("", *_AFTER_APOSTROPHE)):
                # Only letters are read differently after an apostrophe.
                other = before and text[:2].isascii() and any(map(str.isalpha, text[:2]))
                kind = (self._reduce(text, before).text if other else alone, rest)
                kinds[variant, token] = self._kinds.setdefault(kind, len(self._kinds))
        return kinds

    def _reduce(self, text: str, before: str = "") -> Reduced:
        """Replace the characters of ``text``, which ``before`` stands before."""
        reduced = text.translate(self._representatives)
        if before or any(mark in text for mark in APOSTROPHES):
            reduced = _with_contractions(before + text, before + reduced)[len(before) :]
        if _LONG_RUN.search(reduced) is None:
            return Reduced(reduced, range(len(reduced)))
        dropped = {place for run in _LONG_RUN.finditer(reduced) for place in range(run.start() + _KEPT_RUN, run.end())}
        places = [place for place in range(len(reduced)) if place not in dropped]
        return Reduced("".join(reduced[place] for place in places), places)

    def _context(self, text: str, variant: int, kinds: np.ndarray) -> _Context:
        """What is known of a reduced text, with all of ``kinds`` known."""
        key = (text, variant)
        context = self._contexts.setdefault(key, _Context([], np.zeros(len(self._kinds), dtype=np.int64)))
        self._contexts.move_to_end(key)
        if len(self._contexts) > _KEPT_CONTEXTS:
            self._contexts.popitem(last=False)
        names = list(self._kinds)
        for kind in np.unique(kinds[context.bits[kinds] == 0]).tolist():
            token, rest = names[kind]
            for outcome in {self._outcome(text, token, rest, future) for future in futures(text + token, rest)}:
                if outcome not in context.outcomes:
                    context.outcomes.append(outcome)
                context.bits[kind] |= 1 << context.outcomes.index(outcome)
        return context

    def _outcome(self, text: str, token: str, rest: bytes, future: str) -> _Outcome:
        cuts = self.cuts(text + token + future)
        end = len(text) + len(token) + (1 if rest else 0)  # the first character of ``future`` is the token's as well
        return _Outcome(
            inside=frozenset(cut for cut in cuts if cut < len(text)),
            between=len(text) in cuts or not text,
            within=any(len(text) < cut < end for cut in cuts),
        )
