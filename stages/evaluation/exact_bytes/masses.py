"""The probability of a byte prefix and of what comes after it, from a model's answers on its coverings.

Legend: V vocabulary, N nodes of a tree of coverings, 257 the bytes and the end of the text.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from alignment.byte_view import ByteView
from alignment.covers import CoverTree
from alignment.token_table import TokenKind
from stages.stage import StageError

END = 256
"""What stands behind the 256 bytes in a next-byte distribution: the text ends."""


class ByteMasses(NamedTuple):
    """What a model says of one prefix.

    Attributes:
        log_probability: that a text begins with it, in nats.
        next_logp: float32 [257], of what comes next, in nats; adds up to 1. None where it was not asked for.
    """

    log_probability: float
    next_logp: np.ndarray | None


class Weigher:
    """Sums a model's probabilities over coverings.

    Args:
        view: the tokenizer.
    """

    def __init__(self, view: ByteView) -> None:
        spelled = [view.token_bytes(token) or b"" for token in range(view.vocab_size)]
        self._lengths = view.byte_lengths.astype(np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._pool = np.frombuffer(b"".join(spelled), np.uint8)
        self._ends = np.flatnonzero(view.kinds == TokenKind.SPECIAL)

    def weigh(self, tree: CoverTree, trunk_logp: float, logp: np.ndarray, *, what_next: bool) -> ByteMasses:
        """The masses of ``tree``.

        Args:
            trunk_logp: log-probability of the trunk, in nats.
            logp: float64 [N, V], next-token log-probabilities after each node, in nats.
            what_next: whether to sum over the next byte as well.

        Raises:
            StageError: the model gives no probability to anything that could come next.
        """
        mass = np.zeros(len(tree.nodes))  # of a node's path, as a share of the trunk's
        following = np.zeros(END + 1)
        covered = 0.0
        rest = len(tree.prefix) - tree.start
        for index, node in enumerate(tree.nodes):
            mass[index] = 1.0 if node.parent < 0 else mass[node.parent] * np.exp(logp[node.parent, node.path[-1]])
            spelled = int(self._lengths[list(node.path)].sum())
            if spelled < rest:
                shares = mass[index] * np.exp(logp[index, node.lasts])
                covered += float(shares.sum())
                if what_next:
                    self._add(following, node.lasts, rest - spelled, shares)
                continue
            if not node.path:
                covered += mass[index]  # the trunk spells the whole prefix
            if what_next and node.following is not None:
                tokens = np.flatnonzero(node.following)
                self._add(following, tokens, 0, mass[index] * np.exp(logp[index, tokens]))
                if node.may_end:
                    following[END] += mass[index] * np.exp(logp[index, self._ends]).sum()
        if what_next and not following.sum() > 0:
            raise StageError(
                f"nothing can come after {tree.prefix[-24:]!r}: the model gives no probability to any valid "
                "continuation, nor to the text's end"
            )
        with np.errstate(divide="ignore"):
            total = trunk_logp + float(np.log(covered))
            next_logp = (np.log(following) - np.log(following.sum())).astype(np.float32) if what_next else None
        return ByteMasses(total, next_logp)

    def _add(self, following: np.ndarray, tokens: np.ndarray, offset: int, shares: np.ndarray) -> None:
        """Add the shares of tokens that go on beyond ``offset`` bytes to the byte that they have there."""
        beyond = self._lengths[tokens] > offset
        bytes_next = self._pool[self._starts[tokens[beyond]] + offset]
        following[:END] += np.bincount(bytes_next, weights=shares[beyond], minlength=END)
