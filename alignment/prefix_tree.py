"""All prefixes of the sequences that a vocabulary's tokens stand for: of bytes, or of another vocabulary's tokens.

In the lexicographic order of the sequences, the tokens that begin with a given prefix are one contiguous range, and the
symbols that may come next cut it into contiguous sub-ranges. Sums of probabilities over either are differences of a
cumulative sum.

Legend: V tokens of the vocabulary, M of them with a sequence that is not empty, K nodes (prefixes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from alignment.byte_view import ByteView
from alignment.table_cache import Arrays


@dataclass(frozen=True)
class PrefixTree:
    """The prefixes, shortest first, then in lexicographic order; node 0 is the empty one.

    The children of a node have consecutive numbers. Of ``tokens[starts[k]:ends[k]]``, which begin with the prefix k,
    those up to ``inner[k]`` are exactly the prefix and the others go on.

    Attributes:
        tokens: int64 [M], in the lexicographic order of their sequences.
        starts, inner, ends: int64 [K].
        parents: int64 [K], ascending; -1 for node 0.
        symbols: int64 [K], the last symbol of the prefix; -1 for node 0.
        whole: int64 [V], the node of a token's whole sequence; 0 for a token without one.
    """

    tokens: np.ndarray
    starts: np.ndarray
    inner: np.ndarray
    ends: np.ndarray
    parents: np.ndarray
    symbols: np.ndarray
    whole: np.ndarray

    def arrays(self) -> Arrays:
        """The attributes by name, for ``table_cache``; ``PrefixTree(**arrays)`` reads them back."""
        return asdict(self)


def byte_tree(view: ByteView) -> PrefixTree:
    """The tree of the tokens' bytes; special tokens have none."""
    spelled = [view.token_bytes(token) or b"" for token in range(view.vocab_size)]
    return prefix_tree(np.frombuffer(b"".join(spelled), np.uint8), np.cumsum([0, *map(len, spelled)]))


def prefix_tree(symbols: np.ndarray, offsets: np.ndarray) -> PrefixTree:
    """The tree of V sequences, some of which may be equal or empty.

    Args:
        symbols: integers in [0, 2**32), all sequences one after the other.
        offsets: int64 [V + 1]; sequence v is ``symbols[offsets[v]:offsets[v + 1]]``.
    """
    tokens = _lexicographic_order(symbols, offsets)
    begins, lengths = offsets[tokens], np.diff(offsets)[tokens]
    symbols = symbols.astype(np.int64)
    node = np.zeros(len(tokens), dtype=np.int64)  # of each token's prefix, as far as it was read
    layers = [tuple(np.array([value]) for value in (0, len(tokens), -1, -1))]
    num_nodes = 1
    for depth in range(int(lengths.max(initial=0))):
        # Tokens that end earlier sort before those that go on, so that what is left of a prefix stays contiguous.
        active = np.flatnonzero(lengths > depth)
        parent, symbol = node[active], symbols[begins[active] + depth]
        new = np.append(True, (np.diff(parent) != 0) | (np.diff(symbol) != 0))
        first = np.flatnonzero(new)
        last = np.append(first[1:], len(active)) - 1
        layers.append((active[first], active[last] + 1, parent[first], symbol[first]))
        node[active] = num_nodes + np.cumsum(new) - 1
        num_nodes += len(first)
    starts, ends, parents, last_symbols = (
        np.concatenate(parts).astype(np.int64) for parts in zip(*layers, strict=True)
    )
    whole = np.zeros(len(offsets) - 1, dtype=np.int64)
    whole[tokens] = node
    inner = starts + np.bincount(node, minlength=num_nodes)
    return PrefixTree(tokens, starts, inner, ends, parents, last_symbols, whole)


def _lexicographic_order(symbols: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int64 [M]: the sequences that are not empty, in order; of equal ones the lower number first."""
    width = 4
    spelled = symbols.astype(">u4").tobytes()  # big-endian, so that bytes compare as the numbers do
    bounds: Sequence[int] = (offsets * width).tolist()
    tokens = np.flatnonzero(np.diff(offsets)).tolist()
    return np.array(sorted(tokens, key=lambda token: spelled[bounds[token] : bounds[token + 1]]), dtype=np.int64)
