"""All byte prefixes of a vocabulary's tokens as flat arrays, to look up many byte strings at once.

A node stands for one byte prefix; node 0 for the empty one. Nodes are numbered level by level and, on each level, in
byte order, so that the sorted keys ``256 * parent + byte`` are the edges: the node behind edge i is i + 1.

Legend: M nodes, N tokens with bytes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment.byte_view import ByteView
from alignment.token_table import TokenKind

_PREFERENCE = (TokenKind.TEXT, TokenKind.ADDED, TokenKind.BYTE_FALLBACK)
_BRANCHING = 256


@dataclass(frozen=True)
class ByteTrie:
    """The prefixes of the tokens of one vocabulary.

    Attributes:
        order: int32 [N], the tokens that have bytes, in byte order; of equal bytes the one that encoding uses first.
        key: int64 [M - 1], ascending: 256 * parent node + byte, for every node but the first.
        start, end: int32 [M], the tokens that begin with the node's bytes are ``order[start:end]``.
        token: int32 [M], the token that is spelled by exactly the node's bytes, -1 for none.
        longest: int32 [M], the longest token that is a prefix of the node's bytes or equal to them, -1 for none.
        node: int32 [V], the node of every token's own bytes; 0 for tokens without bytes.
    """

    order: np.ndarray
    key: np.ndarray
    start: np.ndarray
    end: np.ndarray
    token: np.ndarray
    longest: np.ndarray
    node: np.ndarray

    @classmethod
    def from_view(cls, view: ByteView) -> ByteTrie:
        """The trie of a tokenizer's vocabulary."""
        spelled = {token: view.token_bytes(token) or b"" for token in np.flatnonzero(view.byte_lengths).tolist()}
        rank = {kind.value: place for place, kind in enumerate(_PREFERENCE)}
        ranks = [rank.get(kind, len(rank)) for kind in view.kinds.tolist()]
        order = np.array(sorted(spelled, key=lambda token: (spelled[token], ranks[token], token)), dtype=np.int32)
        lengths = view.byte_lengths[order]
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        pool = np.frombuffer(b"".join(spelled[token] for token in order.tolist()), np.uint8)

        node = np.zeros(len(order), dtype=np.int32)  # of each token's first `depth` bytes
        levels = [(np.zeros(0, np.int64), np.zeros(1, np.int32), np.array([len(order)], np.int32))]
        known = 1
        for depth in range(int(lengths.max(initial=0))):
            longer = np.flatnonzero(lengths > depth)
            keys = node[longer] * np.int64(_BRANCHING) + pool[starts[longer] + depth]
            first = np.flatnonzero(np.diff(keys, prepend=-1))
            last = np.append(first[1:], len(keys)) - 1
            levels.append((keys[first], longer[first].astype(np.int32), longer[last].astype(np.int32) + 1))
            node[longer] = known + np.repeat(np.arange(len(first)), last - first + 1)
            known += len(first)
        key, start, end = (np.concatenate(arrays) for arrays in zip(*levels, strict=True))

        token = np.full(known, -1, dtype=np.int32)
        token[node[::-1]] = order[::-1]  # of equal bytes the first one stays
        node_of_token = np.zeros(view.vocab_size, dtype=np.int32)
        node_of_token[order] = node
        return cls(order, key, start, end, token, _inherit(token, key), node_of_token)

    def parent(self) -> np.ndarray:
        """int32 [M]: the node of all bytes but the last; node 0 is its own."""
        return np.append(0, self.key // _BRANCHING).astype(np.int32)

    def walk(self, pool: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Follow each of the byte strings ``pool[start:end]`` from node 0 as far as there are nodes.

        Returns:
            int32 arrays: the last node reached, and the number of bytes that led there.
        """
        node, depth = np.zeros(len(start), dtype=np.int32), np.zeros(len(start), dtype=np.int32)
        walking = np.flatnonzero(start < end)
        bytes_read = 0
        while walking.size and self.key.size:
            keys = node[walking] * np.int64(_BRANCHING) + pool[start[walking] + bytes_read]
            edge = np.searchsorted(self.key, keys)
            found = self.key[np.minimum(edge, len(self.key) - 1)] == keys
            bytes_read += 1
            walking = walking[found]
            node[walking], depth[walking] = edge[found] + 1, bytes_read
            walking = walking[start[walking] + bytes_read < end[walking]]
        return node, depth


def _inherit(token: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Each node's token or, where it has none, that of the nearest node above."""
    longest = token.copy()
    parent = np.append(0, key // _BRANCHING)
    missing = np.flatnonzero(longest < 0)
    above = parent[missing]
    while missing.size:
        longest[missing] = token[above]
        going_on = (token[above] < 0) & (above > 0)
        missing, above = missing[going_on], parent[above[going_on]]
    return longest
