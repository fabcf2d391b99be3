"""Tokens at random by dropout: the baselines that StochasTok is compared with (stochastok.md §10).

Both cut words into tokens anew, where StochasTok splits the tokens that there are. ``tokenizers`` can drop merges too,
but takes no seed; here the generator that is given decides everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from alignment.byte_models import Merges, bpe_primitives
from alignment.byte_view import ByteView
from alignment.encoding import Encoding
from alignment.respelling import respell
from alignment.token_codecs import TokenAffix
from alignment.token_index import TokenIndex
from alignment.token_table import TokenKind

Cut = Callable[[bytes, float, Iterator[float], bool], list[int] | None]
"""Bytes of a word, probability of a drop, numbers in [0, 1), whether the word begins there -> ids; None for none."""

_WHITE_SPACE = b" \t\n\r"
_NUMBERS_AT_ONCE = 1024


def uniform_numbers(rng: np.random.Generator) -> Iterator[float]:
    """Numbers in [0, 1), one after the other, without end."""
    while True:
        yield from rng.random(_NUMBERS_AT_ONCE).tolist()


def bpe_dropout(view: ByteView, merges: Merges) -> Cut:
    """BPE-dropout (Provilkov et al. 2020, arXiv 1910.13267).

    In every step each merge that is possible in the word is dropped with the given probability, and the best of the
    others is made; when none is left, the word is done.
    """
    primitives = bpe_primitives(TokenIndex(view), merges)

    def cut(data: bytes, probability: float, numbers: Iterator[float], starts_word: bool) -> list[int] | None:
        ids = primitives(data)
        while ids is not None and len(ids) > 1:
            possible = [(merges[pair], at) for at, pair in enumerate(itertools.pairwise(ids)) if pair in merges]
            candidates = [merge for merge in possible if next(numbers) >= probability]
            if not candidates:
                break
            (_, merged), at = min(candidates)
            ids[at : at + 2] = [merged]
        return ids

    return cut


def maxmatch_dropout(view: ByteView) -> Cut:
    """MaxMatch-dropout (Hiraoka 2022, arXiv 2209.04126), for any vocabulary.

    From the left, the longest token that fits is taken, but each candidate longer than one character is passed over
    with the given probability. A space that is no token by itself, as in WordPiece, is one character with what follows.
    A word that comes to a dead end, where no token fits, has no cut.
    """
    affixes = view.affixes.tolist()
    ids: dict[tuple[int, bytes], int] = {}
    for token in np.flatnonzero(view.kinds == TokenKind.TEXT)[::-1].tolist():  # the lowest id stays
        ids[affixes[token], view.token_bytes(token) or b""] = token
    longest = max((len(data) for _, data in ids), default=0)
    inner = TokenAffix.CONTINUES if (view.affixes & TokenAffix.CONTINUES).any() else TokenAffix.NONE
    ends_words = bool((view.affixes & TokenAffix.ENDS).any())
    space_is_token = (TokenAffix.NONE, b" ") in ids

    def cut(data: bytes, probability: float, numbers: Iterator[float], starts_word: bool) -> list[int] | None:
        cuts: list[int] = []
        start = 0
        while start < len(data):
            place = inner if cuts or not starts_word else TokenAffix.NONE
            opens = start == 0 and data[:1] == b" " and not space_is_token
            character_end = _character_end(data, start + opens)
            for end in range(min(start + longest, len(data)), start, -1):
                is_last = TokenAffix.ENDS if ends_words and end == len(data) else TokenAffix.NONE
                token = ids.get((place | is_last, data[start:end]))
                if token is not None and (end <= character_end or next(numbers) >= probability):
                    cuts.append(token)
                    start = end
                    break
            else:
                return None
        return cuts

    return cut


class WordCutter:
    """Cuts the words of encodings anew.

    Args:
        view: the tokenizer.
        cut: how a word is cut.
    """

    def __init__(self, view: ByteView, cut: Cut) -> None:
        self._view = view
        self._cut = cut
        tokens = [view.token_bytes(token) or b"" for token in np.flatnonzero(view.kinds == TokenKind.TEXT).tolist()]
        self._crosses_spaces = any(map(_crosses_space, tokens))

    def respell(
        self,
        encoding: Encoding,
        words: np.ndarray,
        probability: float,
        *,
        rng: np.random.Generator,
        protected: np.ndarray | None = None,
    ) -> Encoding:
        """The encoding with every word cut anew, but for what the tokenizer rewrote, special and added tokens.

        A word is what the pre-tokenizer cuts out. Where it leaves several in one piece, as SentencePiece models do, and
        no token of the vocabulary goes on after a space, words end at spaces.

        Args:
            words: int [T], from ``ByteView.words``.
            probability: of a drop, in [0, 1]; at 0 BPE-dropout gives the encoding itself.
            rng: the only source of randomness.
            protected: bool [T], tokens that stay.
        """
        numbers = uniform_numbers(rng)
        kept = encoding.special | ~encoding.verbatim | (self._view.kinds[encoding.ids] != TokenKind.TEXT)
        kept = kept if protected is None else kept | protected
        new_ids: list[int] = []
        sizes: list[int] = []
        last: list[int] = []
        old_ids, fixed = encoding.ids.tolist(), kept.tolist()
        starts_word = np.append(True, words[1:] != words[:-1])[: len(words)].tolist()
        for start, stop in self._runs(old_ids, fixed, starts_word):
            ids = None
            if not fixed[start]:
                data = b"".join(self._view.token_bytes(token) or b"" for token in old_ids[start:stop])
                ids = self._cut(data, probability, numbers, starts_word[start])
            pieces = [[token] for token in old_ids[start:stop]] if ids is None else [ids]
            new_ids += itertools.chain.from_iterable(pieces)
            sizes += map(len, pieces)
            last += range(start, stop) if ids is None else [stop - 1]
        group = np.repeat(np.arange(len(sizes)), sizes)
        return respell(encoding, np.array(new_ids, np.int32), group, np.array(last, np.int64), self._view.byte_lengths)

    def _runs(self, ids: list[int], fixed: list[bool], starts_word: list[bool]) -> Iterator[tuple[int, int]]:
        """Start and end of every stretch of tokens that are cut anew together, and of every token that stays."""
        start = 0
        for index in range(1, len(ids)):
            if starts_word[index] or fixed[index] or fixed[start] or self._after_space(ids[index - 1], ids[index]):
                yield start, index
                start = index
        if ids:
            yield start, len(ids)

    def _after_space(self, before: int, token: int) -> bool:
        if self._crosses_spaces:
            return False
        ends = (self._view.token_bytes(before) or b"")[-1:]
        begins = (self._view.token_bytes(token) or b"")[:1]
        return begins == b" " and ends not in (b"", *(bytes([space]) for space in _WHITE_SPACE))


def _crosses_space(token: bytes) -> bool:
    """Whether a space follows something else than white space inside a token."""
    return any(right == _WHITE_SPACE[0] and left not in _WHITE_SPACE for left, right in itertools.pairwise(token))


def _character_end(data: bytes, start: int) -> int:
    """Where the UTF-8 character ends of which the byte at ``start`` is part."""
    end = start + 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    return end
