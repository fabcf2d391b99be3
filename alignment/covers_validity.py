"""Which token may come next in the encoding of some text: by merges and pre-tokenizer, or by encoding again.

A sequence of tokens is *valid* if it begins the encoding of some text (evaluation.md §4). The encoding of the text that
it spells need not be the sequence itself: GPT-2 encodes two line ends as one token, and as two where a word follows.

Legend: V vocabulary, N tokens that are asked about.
"""

from __future__ import annotations

import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from alignment.byte_view import ByteView
from alignment.covers_borders import Borders
from alignment.covers_merges import MergePairs
from alignment.covers_text import begins_text, futures, split_text
from alignment.token_table import TokenKind

_KEPT_ANSWERS = 128
_BLOCK = 4096
_CONTINUATION = range(0x80, 0xC0)


class Begun(NamedTuple):
    """A valid sequence, from a place on that nothing before it matters to.

    Attributes:
        data: the bytes of the tokens.
        tokens: the sequence.
    """

    data: bytes
    tokens: tuple[int, ...]

    def then(self, token: int, spelled: bytes) -> Begun:
        """With one token more."""
        return Begun(self.data + spelled, (*self.tokens, token))


EncodeSpelled = Callable[[Sequence[str]], list[np.ndarray | None]]
"""Texts as their tokens spell them, an invented space included -> ids; None for one that tokens spell otherwise."""


class Validity(Protocol):
    """What a tokenizer allows.

    ``method`` says how it is known, for reports.
    """

    method: str

    def first(self, text: str, rest: bytes, starts: np.ndarray, tokens: np.ndarray) -> int:
        """From which of its tokens on a valid sequence matters to what may come after it.

        Args:
            text: what the sequence spells, and more.
            rest: bytes of a character begun after ``text``.
            starts: int64 [T + 1], bytes at which the tokens begin; the last one is where the next token does.
            tokens: int32 [T], the sequence; no token of the vocabulary could lie across its end.
        """

    def following(self, begun: Begun, tokens: np.ndarray) -> np.ndarray:
        """bool [N]: which of ``tokens`` (int64 [N], with bytes) may come next."""


class ByMerges:
    """Byte-pair encoding on bytes, behind a pre-tokenizer that sees classes of characters, or behind none.

    Args:
        pairs: its merges.
        borders: its pre-tokenizer; None for none.
        whole: a pre-token that is in the vocabulary is one token, whatever the merges make of it.
        composed: texts are brought to Unicode normal form C first, so that tokens in another form never appear.
    """

    def __init__(
        self,
        view: ByteView,
        pairs: MergePairs,
        borders: Borders | None,
        *,
        whole: bool = False,
        composed: bool = False,
    ) -> None:
        self.method = "merges" if borders is None else "merges and pre-token borders"
        self._borders = borders
        self._spelled = [view.token_bytes(token) or b"" for token in range(view.vocab_size)]
        self._pairs = pairs
        self._added = view.kinds == TokenKind.ADDED
        begins = np.array([bool(data) and begins_text(data) for data in self._spelled])
        if composed:
            begins &= [unicodedata.is_normalized("NFC", data.decode(errors="ignore")) for data in self._spelled]
        self._begins_text = begins & (pairs.made | self._added | whole)
        self._goes_on = np.array([bool(data) and data[0] in _CONTINUATION for data in self._spelled])

    def first(self, text: str, rest: bytes, starts: np.ndarray, tokens: np.ndarray) -> int:
        """The last token that begins where a pre-token always does; without pre-tokens, none."""
        if self._borders is None:
            return len(tokens)
        cuts = set.intersection(*(self._borders.cuts(text + end) for end in futures(text, rest)))
        offsets = np.cumsum([0, *(len(character.encode()) for character in text)])
        borders = {0, *(int(offsets[cut]) for cut in cuts if cut < len(offsets))}
        return max(index for index, start in enumerate(starts.tolist()) if start in borders)

    def following(self, begun: Begun, tokens: np.ndarray) -> np.ndarray:
        """See ``Validity``."""
        pairs = (self._pairs.after(begun.tokens[-1]) if begun.tokens else self._pairs.made)[tokens]
        text, rest = split_text(begun.data)
        if rest:
            return pairs & self._complete(rest, tokens)
        valid = self._begins_text[tokens]
        if self._borders is None:
            valid = valid & pairs
        else:
            edges, forced = self._edges(begun, text)
            asked = np.flatnonzero(valid)
            valid[asked] = self._borders.allowed(text, edges, forced, tokens[asked], pairs[asked])
        # An added token is cut out of a text before merges are asked.
        return valid | (self._added & self._begins_text)[tokens]

    def _complete(self, rest: bytes, tokens: np.ndarray) -> np.ndarray:
        """Which tokens go on with the incomplete character ``rest``: no pre-token begins inside one."""
        goes_on = self._goes_on[tokens]
        for index in np.flatnonzero(goes_on).tolist():
            goes_on[index] = begins_text(rest + self._spelled[tokens[index]])
        return goes_on

    def _edges(self, begun: Begun, text: str) -> tuple[list[int], list[int]]:
        """Characters at which tokens begin, and those of them where the merges do not allow that."""
        ends = np.cumsum([len(character.encode()) for character in text])
        character_at = {int(end): place for place, end in enumerate(ends, start=1)}
        edges, forced, place = [], [], 0
        for before, token in zip(begun.tokens, begun.tokens[1:], strict=False):
            place += len(self._spelled[before])
            if place in character_at:
                edges.append(character_at[place])
                if not (self._pairs.after(before)[token] or self._added[before] or self._added[token]):
                    forced.append(character_at[place])
        return edges, forced


class ByEncoding:
    """Any tokenizer: what it makes of the sequence's text, with the next token's and what may follow.

    Args:
        encode: encodes texts, given as what their tokens spell.
        looks_ahead: what follows a text may change its last tokens.
    """

    def __init__(self, view: ByteView, encode: EncodeSpelled, *, looks_ahead: bool) -> None:
        self.method = "encoding again"
        self._encode = encode
        self._spelled = [view.token_bytes(token) or b"" for token in range(view.vocab_size)]
        self._looks_ahead = looks_ahead
        self._answers: OrderedDict[Begun, np.ndarray] = OrderedDict()  # int8 [V]: 1 valid, 0 not, -1 not asked yet

    def first(self, text: str, rest: bytes, starts: np.ndarray, tokens: np.ndarray) -> int:
        """The last token from which on the text by itself has the tokens that it has in its place."""
        ends = ("", *futures(text, rest))
        whole = self._encode([text + end for end in ends])
        spelled = text.encode()
        for first in range(len(tokens) - 1, 0, -1):
            part = spelled[starts[first] :].decode(errors="ignore")
            again = self._encode([part + end for end in ends])
            if all(_same(old, new, first) for old, new in zip(whole, again, strict=True)):
                return first
        return 0

    def following(self, begun: Begun, tokens: np.ndarray) -> np.ndarray:
        """See ``Validity``."""
        known = self._answers.setdefault(begun, np.full(len(self._spelled), -1, dtype=np.int8))
        self._answers.move_to_end(begun)
        if len(self._answers) > _KEPT_ANSWERS:
            self._answers.popitem(last=False)
        unknown = tokens[known[tokens] < 0]
        for start in range(0, len(unknown), _BLOCK):
            block = unknown[start : start + _BLOCK]
            known[block] = self._ask(begun, block.tolist())
        return known[tokens] > 0

    def _ask(self, begun: Begun, tokens: Sequence[int]) -> np.ndarray:
        wanted = len(begun.tokens) + 1
        asked, texts = [], []
        for index, token in enumerate(tokens):
            data = begun.data + self._spelled[token]
            if begins_text(data):
                text, rest = split_text(data)
                # White space alone may be a text's beginning and no text.
                ends = futures(text, rest) if rest or self._looks_ahead or text.isspace() else ("",)
                asked += [index] * len(ends)
                texts += [text + end for end in ends]
        valid = np.zeros(len(tokens), dtype=np.int8)
        for index, ids in zip(asked, self._encode(texts), strict=True):
            valid[index] |= ids is not None and tuple(ids[:wanted].tolist()) == (*begun.tokens, tokens[index])
        return valid


def _same(whole: np.ndarray | None, part: np.ndarray | None, first: int) -> bool:
    if whole is None or part is None:
        return whole is part
    return np.array_equal(whole[first:], part)
