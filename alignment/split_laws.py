"""How splits are drawn: the law of arXiv 2506.01687, exactly and without a loop over tokens, and an approximation.

Source: stochastok.md §1 and §4. Legend: D sequences, N tokens of all of them, M attempts, E draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from alignment.splits import SplitTable

ExpansionLaw = Literal["steps", "binomial"]
Rounding = Literal["floor", "stochastic"]

_NODES_AT_ONCE = 1 << 16  # beyond this the arrays fall out of the processor's cache


class Drawn(NamedTuple):
    """One sequence after its splits: int32 [U] ids, and int64 [U] the index of the token that each came from."""

    ids: np.ndarray
    origin: np.ndarray


def attempts_of(length: int, proportion: float, rounding: Rounding, rng: np.random.Generator) -> int:
    """How many attempts a sequence gets: floor(length · proportion), and with ``stochastic`` perhaps one more.

    Rounding starts from the decimal that was written: 0.29 of 100 is 29, not 28.999…

    Raises:
        ValueError: ``rounding`` is unknown.
    """
    if rounding not in ("floor", "stochastic"):
        raise ValueError(f"rounding must be 'floor' or 'stochastic', got {rounding!r}")
    exact = length * proportion
    whole = math.floor(exact + 1e-9)
    return whole if rounding == "floor" else whole + bool(rng.random() < exact - whole)


def steps(
    table: SplitTable, ids: np.ndarray, lengths: np.ndarray, attempts: np.ndarray, rngs: Sequence[np.random.Generator]
) -> list[Drawn]:
    """The law ``steps``: each attempt draws a token of the sequence as it is then, and splits it if it can.

    A uniform position of the sequence is a uniform *node*, whatever the order in which nodes are stored (stochastok.md
    §4). Attempt j of a sequence of n tokens draws from n + j places: the tokens, and for each attempt before it the
    second half that it made. A place is empty where that attempt failed; then the draw is repeated, and the first place
    that is not empty is a uniform one of the nodes there are. All these draws can be made beforehand, down to the first
    that names an original token. What is left is to carry them out in an order that respects which depends on which.
    As an attempt depends on few others, mostly on none, many are carried out at once, and the number of rounds grows
    with the logarithm of the attempts.

    Args:
        ids: int32 [N], all sequences, one after the other; ids up to V, which has no splits.
        lengths, attempts: int64 [D], of each sequence.
        rngs: of each sequence.
    """
    drawn: list[Drawn] = []
    token = 0
    for part in _parts(lengths + attempts):
        stop = token + int(lengths[part].sum())
        nodes = _Nodes(table, ids[token:stop], lengths[part], attempts[part])
        nodes.make_attempts(rngs[part])
        drawn += nodes.in_order()
        token = stop
    return drawn


def _parts(sizes: np.ndarray) -> list[slice]:
    """Runs of sequences whose nodes stay in the processor's cache."""
    if not len(sizes):
        return []
    ends = np.cumsum(sizes) // _NODES_AT_ONCE
    bounds = [0, *(np.flatnonzero(np.diff(ends)) + 1).tolist(), len(sizes)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


class _Nodes:
    """All sequences' nodes, one after the other: of each its tokens, then a place for what each attempt may make."""

    def __init__(self, table: SplitTable, ids: np.ndarray, lengths: np.ndarray, attempts: np.ndarray) -> None:
        sizes = lengths + attempts
        self._lengths, self._attempts = lengths, attempts
        self._bases = np.cumsum(sizes) - sizes
        self._first_token = np.cumsum(lengths) - lengths
        self._table = table
        self._node_of_token = _ranges(self._bases, lengths)
        self._node_of_attempt = _ranges(self._bases + lengths, attempts)
        nodes = int(sizes.sum())
        self._ids = np.full(nodes, -1, dtype=np.int32)  # -1: there is no such node
        self._ids[self._node_of_token] = ids
        self._origin = np.zeros(nodes, dtype=np.int64)
        self._origin[self._node_of_token] = np.arange(len(self._node_of_token))
        self._byte = np.zeros(nodes, dtype=np.int32)  # where in its original token a node begins

    def make_attempts(self, rngs: Sequence[np.random.Generator]) -> None:
        """Let every attempt find its node and split it."""
        choice, attempt, node = self._draw(rngs)
        plan = self._plan(attempt, node)
        waiting = plan.waits_for
        seen = np.empty_like(waiting)
        undecided = np.ones(len(choice), dtype=bool)
        ready = np.flatnonzero(waiting == 0)
        while ready.size:
            node, attempt = plan.node[ready], plan.attempt[ready]
            finds = (self._ids[node] >= 0) & undecided[attempt]
            undecided[attempt[finds]] = False
            self._split(node[finds], attempt[finds], choice)
            freed = np.concatenate([following[ready] for following in plan.followers])
            freed = freed[freed >= 0]
            np.subtract.at(waiting, freed, 1)
            freed = freed[waiting[freed] == 0]
            seen[freed] = np.arange(len(freed))  # of a draw that two others freed, the last mention stays
            ready = freed[seen[freed] == np.arange(len(freed))]

    def _draw(self, rngs: Sequence[np.random.Generator]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """float [M]: which of a token's splits each attempt takes, as a share of them; and int64 [E] twice: the
        attempts' draws of nodes, first ones first."""
        numbers = [rng.random((2, count)) for rng, count in zip(rngs, self._attempts.tolist(), strict=True)]
        choice, uniform = np.concatenate(numbers, axis=1)
        sequence = np.repeat(np.arange(len(rngs)), self._attempts)
        attempt = np.arange(len(sequence))
        places = self._node_of_attempt - self._bases[sequence]  # tokens, and attempts before
        drawn: list[tuple[np.ndarray, np.ndarray]] = []
        while attempt.size or not drawn:
            place = (uniform * places[attempt]).astype(np.int64)
            drawn.append((attempt, self._bases[sequence] + place))
            again = place >= self._lengths[sequence]
            attempt, sequence = attempt[again], sequence[again]
            counts = np.bincount(sequence, minlength=len(rngs))
            drawing = np.flatnonzero(counts).tolist()
            uniform = np.concatenate([np.zeros(0), *(rngs[index].random(counts[index]) for index in drawing)])
        attempt, node = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        return choice, attempt, node

    def _plan(self, attempt: np.ndarray, node: np.ndarray) -> _Plan:
        """The draws sorted by node, then attempt, then repetition; and which of them must wait for which."""
        # An attempt's draws come in their order, which a stable sort keeps.
        by_node = np.argsort(node * (len(self._node_of_attempt) + 1) + attempt, kind="stable")
        by_attempt = np.argsort(attempt, kind="stable")
        rank = np.empty_like(by_node)
        rank[by_node] = np.arange(len(by_node))
        by_attempt, last = rank[by_attempt], _ends_run(attempt[by_attempt])
        node, attempt = node[by_node], attempt[by_node]

        next_on_node = np.where(_ends_run(node), -1, np.arange(1, len(node) + 1))
        next_repetition = np.full(len(node), -1)
        next_repetition[by_attempt[~last]] = by_attempt[np.flatnonzero(~last) + 1]
        # An attempt's last draw settles whether the node that it may make is there.
        made = self._node_of_attempt[attempt[by_attempt[last]]]
        found = np.searchsorted(node, made)
        first_of_made = np.full(len(node), -1)
        first_of_made[by_attempt[last]] = np.where(np.append(node, -1)[found] == made, found, -1)

        followers = (next_on_node, next_repetition, first_of_made)
        waits_for = sum(np.bincount(each[each >= 0], minlength=len(node)) for each in followers)
        return _Plan(node, attempt, waits_for, followers)

    def _split(self, node: np.ndarray, attempt: np.ndarray, choice: np.ndarray) -> None:
        """Split the tokens of distinct nodes, each by the attempt that found it, where they have splits."""
        ids = self._ids[node]
        starts = self._table.guarded_offsets[ids]
        counts = self._table.guarded_offsets[ids + 1] - starts
        can = counts > 0
        node, attempt = node[can], attempt[can]
        split = starts[can] + (choice[attempt] * counts[can]).astype(np.int64)
        made = self._node_of_attempt[attempt]
        self._ids[node], self._ids[made] = self._table.left[split], self._table.right[split]
        self._origin[made] = self._origin[node]
        self._byte[made] = self._byte[node] + self._table.left_bytes[split]

    def in_order(self) -> list[Drawn]:
        """The nodes in the order of the text."""
        made = self._node_of_attempt[self._ids[self._node_of_attempt] >= 0]
        made = made[np.lexsort((self._byte[made], self._origin[made]))]
        origin_of_made = self._origin[made]
        more = np.bincount(origin_of_made, minlength=len(self._node_of_token))
        origin = np.repeat(np.arange(len(more)), 1 + more)
        ids = np.empty(len(origin), dtype=np.int32)
        ids[np.arange(len(more)) + np.cumsum(more) - more] = self._ids[self._node_of_token]
        ids[origin_of_made + 1 + np.arange(len(made))] = self._ids[made]
        bounds = np.searchsorted(origin, np.append(self._first_token, len(more))).tolist()
        return [
            Drawn(ids[start:stop], origin[start:stop] - first)
            for start, stop, first in zip(bounds, bounds[1:], self._first_token.tolist(), strict=False)
        ]


@dataclass(frozen=True)
class _Plan:
    """E draws, by node, then attempt, then repetition.

    Attributes:
        node, attempt: int64 [E].
        waits_for: int64 [E], how many draws must be carried out before.
        followers: three of int64 [E], the draws that wait for each, -1 for none: the next at the same node, the same
            attempt's next, and after an attempt's last the first at the node that it may have made.
    """

    node: np.ndarray
    attempt: np.ndarray
    waits_for: np.ndarray
    followers: tuple[np.ndarray, np.ndarray, np.ndarray]


def binomial(
    table: SplitTable,
    ids: np.ndarray,
    lengths: np.ndarray,
    proportion: float,
    rounds: int,
    rngs: Sequence[np.random.Generator],
) -> list[Drawn]:
    """The law ``binomial``: in each of some rounds, every token is split with probability ``proportion / rounds``.

    Args:
        ids: int32 [N], all sequences, one after the other; ids up to V, which has no splits.
        lengths: int64 [D], of each sequence.
        rngs: of each sequence.
    """
    firsts = np.cumsum(lengths) - lengths
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    origin = np.arange(len(ids))
    offsets = table.guarded_offsets
    for _ in range(rounds):
        chance, choice = _uniform(rngs, np.bincount(sequence, minlength=len(rngs)))
        counts = offsets[ids + 1] - offsets[ids]
        chosen = (chance < proportion / rounds) & (counts > 0)
        split = offsets[ids[chosen]] + (choice[chosen] * counts[chosen]).astype(np.int64)
        source = np.repeat(np.arange(len(ids)), 1 + chosen)
        first_halves = np.flatnonzero(chosen) + np.arange(len(split))
        ids, origin, sequence = ids[source], origin[source], sequence[source]
        ids[first_halves], ids[first_halves + 1] = table.left[split], table.right[split]
    bounds = np.searchsorted(sequence, np.arange(len(rngs) + 1)).tolist()
    return [
        Drawn(ids[start:stop], origin[start:stop] - first)
        for start, stop, first in zip(bounds, bounds[1:], firsts.tolist(), strict=False)
    ]


def _uniform(rngs: Sequence[np.random.Generator], sizes: np.ndarray) -> np.ndarray:
    """float [2, N]: two numbers for each token, from the generator of its sequence."""
    drawn = [rng.random((2, size)) for rng, size in zip(rngs, sizes.tolist(), strict=True)]
    return np.concatenate([*drawn, np.zeros((2, 0))], axis=1)


def _ends_run(values: np.ndarray) -> np.ndarray:
    """bool: where the next value is another one; True for the last."""
    return np.append(values[1:] != values[:-1], np.ones(min(len(values), 1), dtype=bool))


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64: ``starts[i]``, ``starts[i] + 1``, … for each i, ``counts[i]`` numbers."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))
