"""Which tokens of a byte-pair encoding may stand side by side, read from its merges.

A sequence of tokens is what byte-pair encoding makes of the bytes that it spells if and only if this holds for every
pair of neighbours (Berglund and van der Merwe, arXiv 2309.08715; Hayase et al., arXiv 2506.14123; evaluation.md §5). A
pair is refused if some merge would have joined the last piece of the left token with the first piece of the right one
while both were still pieces of their own. Pieces are made in the order of ranks, so that comparing ranks decides.

Legend: V vocabulary, N merges.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from alignment.byte_models import Merges

_FOREVER = np.iinfo(np.int64).max
_KEPT_MASKS = 1024


Ask = Callable[[int, np.ndarray], np.ndarray]
"""A token and others -> bool, whether encoding what the token and each of the others spell gives these two."""


@dataclass(frozen=True)
class _Lists:
    """Lists of integers, one a token: of token t the entries from ``start[t]`` to ``start[t + 1]``."""

    start: np.ndarray
    values: np.ndarray
    ranks: np.ndarray

    @classmethod
    def grouped(cls, keys: np.ndarray, values: np.ndarray, ranks: np.ndarray, vocab_size: int) -> _Lists:
        order = np.argsort(keys, kind="stable")
        start = np.searchsorted(keys[order], np.arange(vocab_size + 1))
        return cls(start, values[order], ranks[order])

    def of(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The positions of all entries of ``tokens``, and for each the index in ``tokens`` that it belongs to."""
        counts = self.start[tokens + 1] - self.start[tokens]
        owner = np.repeat(np.arange(len(tokens)), counts)
        first = np.cumsum(counts) - counts
        return self.start[tokens][owner] + np.arange(counts.sum()) - first[owner], owner


class _Parts(NamedTuple):
    """The two tokens that a merge makes each token of, and its rank: lists of V, -1 where no merge makes it."""

    left: list[int]
    right: list[int]
    rank: list[int]

    @classmethod
    def none(cls, vocab_size: int) -> _Parts:
        return cls(*([-1] * vocab_size for _ in range(3)))

    def set(self, token: int, left: int, right: int, rank: int) -> None:
        self.left[token], self.right[token], self.rank[token] = left, right, rank

    def edge(self, token: int, side: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The pieces at one edge of a token, the whole first, with the rank at which each became part of the next."""
        until = _FOREVER
        while token >= 0:
            yield token, until
            until, token = self.rank[token], side[token]


class MergePairs:
    """The neighbours that a byte-pair encoding allows.

    Args:
        merges: of the tokenizer, by ids.
        made: bool [V], the tokens that the merges make of their own bytes; no other one has a neighbour.
        sizes: int [V], the tokens' lengths.
        ask: the encoding itself, for the few tokens whose ranks do not tell in what order their pieces appear.
    """

    def __init__(self, merges: Merges, made: np.ndarray, sizes: np.ndarray, ask: Ask) -> None:
        self.made = made
        vocab_size = len(made)
        self._ask = ask
        self._parts, self._unsure = _last_merges(merges, made, sizes)
        self._rank = np.array(self._parts.rank)
        pairs = np.array(list(merges), dtype=np.int64).reshape(-1, 2)
        ranks = np.array([rank for rank, _ in merges.values()], dtype=np.int64)
        self._partners = _Lists.grouped(pairs[:, 0], pairs[:, 1], ranks, vocab_size)
        self._beginning_with = self._left_edges()
        self._masks: OrderedDict[int, np.ndarray] = OrderedDict()

    def after(self, token: int) -> np.ndarray:
        """bool [V]: the tokens that may follow ``token``; not to be written to."""
        if token in self._masks:
            self._masks.move_to_end(token)
            return self._masks[token]
        mask = self._compatible(token)
        mask.flags.writeable = False
        self._masks[token] = mask
        if len(self._masks) > _KEPT_MASKS:
            self._masks.popitem(last=False)
        return mask

    def _compatible(self, token: int) -> np.ndarray:
        if not self.made[token]:
            return np.zeros_like(self.made)
        mask = self.made.copy()
        for piece, until in self._parts.edge(token, self._parts.right):
            (partners, _) = self._partners.of(np.array([piece]))
            others = self._partners.values[partners]
            # A pair may have a lower rank than what makes its parts: it is joined as soon as both are there.
            joined = np.maximum(self._partners.ranks[partners], np.maximum(self._rank[piece], self._rank[others]))
            # Of equal ranks, as in a run of one letter, the merge further left comes first: the one inside the token,
            others, joined = others[joined < until], joined[joined < until]
            entries, owner = self._beginning_with.of(others)
            # but on the right side the one across the border.
            crossing = joined[owner] <= self._beginning_with.ranks[entries]
            mask[self._beginning_with.values[entries[crossing]]] = False
        asked = np.flatnonzero(self.made if self._unsure[token] else self._unsure)
        mask[asked] = self._ask(token, asked)
        return mask

    def _left_edges(self) -> _Lists:
        """For every piece, the tokens that have it at their left edge, and the rank at which it stopped being one."""
        left = np.array(self._parts.left)
        tokens = np.flatnonzero(self.made)
        piece, until = tokens, np.full(len(tokens), _FOREVER)
        found = []
        while len(tokens):
            found.append((piece, tokens, until))
            going_on = left[piece] >= 0
            tokens, until, piece = tokens[going_on], self._rank[piece[going_on]], left[piece[going_on]]
        pieces, members, ranks = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return _Lists.grouped(pieces, members, ranks, len(self.made))


def _last_merges(merges: Merges, made: np.ndarray, sizes: np.ndarray) -> tuple[_Parts, np.ndarray]:
    """The merge that makes each token, in byte-pair encoding of its own bytes; and bool [V], for which this is open.

    It is open where a merge has a lower rank than one of its parts, as tokenizers do that rank tokens and not merges.
    """
    ways: dict[int, list[tuple[int, int, int]]] = {}
    for (first, second), (rank, product) in merges.items():
        if made[product] and made[first] and made[second]:
            ways.setdefault(product, []).append((rank, first, second))
    parts, unsure = _Parts.none(len(made)), np.zeros(len(made), dtype=bool)
    for product in sorted(ways, key=sizes.__getitem__):  # parts before what they are parts of
        found = ways[product]
        used = [way for way in found if len(found) == 1 or not _joined_earlier(way[1], way[2], parts, merges)]
        rank, first, second = used[0] if used else found[0]
        parts.set(product, first, second, rank)
        in_order = max(parts.rank[first], parts.rank[second]) < rank
        unsure[product] = unsure[first] or unsure[second] or not in_order or len(used) != 1
    return parts, unsure


def _joined_earlier(left: int, right: int, parts: _Parts, merges: Merges) -> bool:
    """Whether a merge joins pieces at the border of two tokens before both are whole."""
    for piece, until in parts.edge(left, parts.right):
        for other, other_until in parts.edge(right, parts.left):
            rank, _ = merges.get((piece, other), (None, None))
            if rank is None or (piece, other) == (left, right):
                continue
            joined = max(rank, parts.rank[piece], parts.rank[other])
            if joined < until and joined <= other_until:
                return True
    return False
