"""A vocabulary's byte prefixes (``alignment.prefix_tree``) as a trie that looks up many byte strings at once.

Nodes are numbered level by level and, on each level, in byte order, so that the sorted keys ``256 * parent + byte`` are
the edges: the node behind edge i is i + 1.

Legend: M nodes, N tokens with bytes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment.byte_view import ByteView
from alignment.prefix_tree import byte_tree
from alignment.token_table import TokenKind

_PREFERENCE = (TokenKind.TEXT, TokenKind.ADDED, TokenKind.BYTE_FALLBACK)
_BRANCHING = 256


@dataclass(frozen=True)
class ByteTrie:
    """The prefixes of the tokens of one vocabulary.

    Attributes:
        order: int32 [N], the tokens that have bytes, in byte order.
        key: int64 [M - 1], ascending: 256 * parent node + byte, for every node but the first.
        start, end: int32 [M], the tokens that begin with the node's bytes are ``order[start:end]``.
        token: int32 [M], the token that is spelled by exactly the node's bytes, of several the one that encoding uses;
            -1 for none.
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
        tree = byte_tree(view)
        key = _BRANCHING * tree.parents[1:] + tree.symbols[1:]
        rank = {kind.value: place for place, kind in enumerate(_PREFERENCE)}
        ranks = np.array([rank.get(kind, len(rank)) for kind in view.kinds[tree.tokens].tolist()])
        worst_first = tree.tokens[np.lexsort((tree.tokens, ranks))[::-1]]
        token = np.full(len(tree.parents), -1, dtype=np.int32)
        token[tree.whole[worst_first]] = worst_first  # of equal bytes the last one written stays
        return cls(
            order=tree.tokens.astype(np.int32),
            key=key,
            start=tree.starts.astype(np.int32),
            end=tree.ends.astype(np.int32),
            token=token,
            longest=_inherit(token, key),
            node=tree.whole.astype(np.int32),
        )

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
