"""StochasTok: replacing tokens at random by two tokens that spell the same bytes.

Source: Sims et al., StochasTok, arXiv 2506.01687; stochastok.md §1 to §4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from alignment.byte_view import ByteView
from alignment.token_table import TokenKind

ExpansionLaw = Literal["steps", "binomial"]

_END = -1  # what follows the last node of a linked list


@dataclass(frozen=True)
class SplitTable:
    """Every way to write a token as two tokens of the same vocabulary, in compressed sparse rows.

    The splits of token t are ``left[k], right[k]`` for ``offsets[t] <= k < offsets[t + 1]``, first cut first.

    Attributes:
        offsets: int64 [V + 1].
        left: int32 [splits], ids of the first halves.
        right: int32 [splits], ids of the second halves.
        cuts_inside_characters: how many splits cut a UTF-8 character; they are legal and lossless.
    """

    offsets: np.ndarray
    left: np.ndarray
    right: np.ndarray
    cuts_inside_characters: int

    @classmethod
    def from_view(cls, view: ByteView) -> SplitTable:
        """Cut every ordinary token at every byte and keep the cuts whose halves are both ordinary tokens.

        Special, added and byte-fallback tokens are neither split nor used as halves (stochastok.md §3). Where
        several ordinary tokens have the same bytes, the lowest id is the half.
        """
        ordinary = [(index, view.token_bytes(index)) for index in np.flatnonzero(view.kinds == TokenKind.TEXT).tolist()]
        id_of = {token: index for index, token in reversed(ordinary)}
        counts = np.zeros(view.vocab_size, dtype=np.int64)
        left: list[int] = []
        right: list[int] = []
        cuts_inside_characters = 0
        for index, token in ordinary:
            for cut in range(1, len(token)):
                first = id_of.get(token[:cut])
                second = None if first is None else id_of.get(token[cut:])
                if second is not None:
                    left.append(first)
                    right.append(second)
                    counts[index] += 1
                    cuts_inside_characters += _is_continuation(token[cut])
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return cls(offsets, np.array(left, np.int32), np.array(right, np.int32), cuts_inside_characters)

    def splits(self, token_id: int) -> list[tuple[int, int]]:
        """The legal splits of one token, first cut first; empty for a token that is never split."""
        row = slice(self.offsets[token_id], self.offsets[token_id + 1])
        return list(zip(self.left[row].tolist(), self.right[row].tolist(), strict=True))

    def expand(
        self, ids: ArrayLike, proportion: float, *, rng: np.random.Generator, law: ExpansionLaw = "steps"
    ) -> np.ndarray:
        """The ids of ``expand_with_index`` alone."""
        return self.expand_with_index(ids, proportion, rng=rng, law=law)[0]

    def expand_with_index(
        self, ids: ArrayLike, proportion: float, *, rng: np.random.Generator, law: ExpansionLaw = "steps"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Split tokens at random; the bytes of the sequence stay what they were.

        ``steps`` is the paper's law: floor(T · proportion) times, draw a position of the sequence as it then is
        and replace its token by one of its splits, if it has any. Pieces may be split again. ``binomial`` splits
        each token that can be split with probability ``proportion``, once, which also reaches short texts.

        Args:
            ids: integers [T], token ids of this table's vocabulary.
            proportion: in [0, 1]; the paper's default is 0.1.
            rng: the only source of randomness; keyed by the caller.

        Returns:
            The new ids, int32 [U] with T <= U <= 2T, and for each the index in ``ids`` of the token it came from,
            int64 [U], so that labels and masks can follow.

        Raises:
            ValueError: an id is outside the vocabulary, or ``proportion`` or ``law`` is not one of the above.
        """
        tokens = self._checked_ids(ids)
        if not 0.0 <= proportion <= 1.0:
            raise ValueError(f"proportion must be in [0, 1], got {proportion}")
        if law == "steps":
            return self._expand_steps(tokens, _attempts(len(tokens), proportion), rng)
        if law == "binomial":
            return self._expand_binomial(tokens, proportion, rng)
        raise ValueError(f"law must be 'steps' or 'binomial', got {law!r}")

    def _checked_ids(self, ids: ArrayLike) -> np.ndarray:
        tokens = np.asarray(ids)
        if tokens.ndim != 1 or not (np.issubdtype(tokens.dtype, np.integer) or tokens.size == 0):
            raise ValueError(f"ids must be a vector of integers, got {tokens.dtype} of shape {tokens.shape}")
        vocab_size = len(self.offsets) - 1
        outside = (tokens < 0) | (tokens >= vocab_size)
        if outside.any():
            index = int(np.argmax(outside))
            raise ValueError(
                f"ids[{index}] is {tokens[index]}, outside [0, {vocab_size}): "
                "the table was built from the vocabulary of another tokenizer"
            )
        return tokens.astype(np.int32)

    def _expand_steps(
        self, tokens: np.ndarray, attempts: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The law of ``steps`` in O(T + attempts), on a linked list kept in arrays.

        A uniform position of the sequence is a uniform node of the list, in whatever order the nodes are stored
        (stochastok.md §4), so a new piece is appended to the arrays and linked in after its sibling.
        """
        token_of = tokens.tolist()
        origin_of = list(range(len(token_of)))
        following = list(range(1, len(token_of) + 1))
        following[-1:] = [_END] if following else []
        position_draws = rng.random(attempts).tolist()
        split_draws = rng.random(attempts).tolist()
        for position_draw, split_draw in zip(position_draws, split_draws, strict=True):
            node = int(position_draw * len(token_of))
            start, stop = self.offsets[token_of[node]], self.offsets[token_of[node] + 1]
            if start == stop:
                continue
            split = start + int(split_draw * (stop - start))
            token_of[node] = self.left[split]
            token_of.append(self.right[split])
            origin_of.append(origin_of[node])
            following.append(following[node])
            following[node] = len(following) - 1
        order = _walk(following)
        return np.array(token_of, dtype=np.int32)[order], np.array(origin_of, dtype=np.int64)[order]

    def _expand_binomial(
        self, tokens: np.ndarray, proportion: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        counts = self.offsets[tokens + 1] - self.offsets[tokens]
        chosen = (rng.random(len(tokens)) < proportion) & (counts > 0)
        splits = (self.offsets[tokens] + (rng.random(len(tokens)) * counts).astype(np.int64))[chosen]
        origin = np.repeat(np.arange(len(tokens)), 1 + chosen)
        expanded = tokens[origin]
        first_halves = np.flatnonzero(chosen) + np.arange(len(splits))
        expanded[first_halves] = self.left[splits]
        expanded[first_halves + 1] = self.right[splits]
        return expanded, origin


def _attempts(length: int, proportion: float) -> int:
    """floor(length · proportion), for the decimal that was written: 0.29 of 100 is 29, not 28.999…"""
    return math.floor(length * proportion + 1e-9)


def _walk(following: list[int]) -> list[int]:
    """The nodes of a linked list in order, from node 0."""
    order: list[int] = []
    node = 0 if following else _END
    while node != _END:
        order.append(node)
        node = following[node]
    return order


def _is_continuation(byte: int) -> bool:
    """Whether a byte goes on a UTF-8 character that began before it."""
    return byte & 0xC0 == 0x80
