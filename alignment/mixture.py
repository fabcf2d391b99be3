"""Which mixture of text a byte-pair tokenizer was trained on, inferred from the order of its merges.

Source: Hayase, Liu et al., Data Mixture Inference, arXiv 2407.16607; evaluation.md §11. Training merges the most
frequent pair each time. So whatever the mixture α of categories was, before merge t

    Σ_i α_i c_i(m_t) / N_i + v_t + u_p  ≥  Σ_i α_i c_i(p) / N_i        for every other pair p,

where c_i counts a pair in a sample of category i after the merges so far, N_i is all pairs of the sample, and the
slacks v, u ≥ 0 take up sampling error. The α that need the least slack are a linear program. Its constraints are found
as they are needed: for each merge the one that the solution so far violates most, up to ``COMPETITORS`` of them.

Departures: instead of one α the range of each share over all optimal α is reported; a merge whose pair occurs in no
sample says nothing of any category, so it is left out and counted. The paper used 30,000 merges, with Gurobi; the time
of the solver here grows faster than their number, so take fewer.

Legend: T merges, K categories, S segments of ``PairCounts``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, vstack

from alignment.merge_replay import Pair, PairCounts, Words, count_pairs

COMPETITORS = 10
"""The most other pairs that a merge is compared with. Samples contradict most merges a little, in favour of very many
pairs: the first few settle α, and what all the others could add is reported."""

_DECIMALS = 8
"""Of shares: what follows is the solver's tolerance."""
_PER_MILLION = 1e6  # the solver's tolerance of 1e-7 is absolute; late merges are of a few pairs in a million
_TOLERANCE = 1e-6  # in pairs per million


@dataclass(frozen=True)
class Category:
    """A sample of one kind of text.

    Attributes:
        words: its pre-tokens as single symbols, with their counts.
        bytes: of UTF-8.
    """

    words: Words
    bytes: int


@dataclass(frozen=True)
class Range:
    """One optimal value, and the least and the greatest of all optimal ones."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Mixture:
    """What the merges say of the training text.

    Attributes:
        pairs: category -> its share of the pairs of neighbouring symbols before the first merge.
        bytes: category -> its share of the bytes.
        slack: the least total slack, as a share of all pairs; 0 if the mixture explains the order of the merges
            completely. Where merges have more than ``COMPETITORS`` it is at least this, and at most ``slack_bound``.
        merges: how many merges were used; of ``contradicted`` ones the estimate has another pair more frequent.
        left_out: merges whose pair is in no sample.
        constraints: how many were needed.
    """

    pairs: Mapping[str, Range]
    bytes: Mapping[str, Range]
    slack: float
    slack_bound: float
    merges: int
    contradicted: int
    left_out: int
    constraints: int


class MixtureError(ValueError):
    """The samples cannot tell anything."""


def infer_mixture(
    merges: Sequence[Pair],
    categories: Mapping[str, Category],
    *,
    max_merges: int | None = None,
    watch: Callable[[str], None] = lambda line: None,
) -> Mixture:
    """The mixtures of categories that best explain an order of merges.

    Args:
        merges: of the tokenizer, in order.
        categories: name -> a sample of it, cut as the tokenizer cuts text.
        max_merges: use the first so many; None for all, which takes hours from ten thousand on.
        watch: told what is going on, a line now and then.

    Raises:
        MixtureError: fewer than two categories, or a sample without pairs, or no merge occurs in any sample.
    """
    if len(categories) < 2:
        raise MixtureError("a mixture is of at least two categories")
    names = list(categories)
    counts = count_pairs(
        merges[:max_merges],
        [category.words for category in categories.values()],
        watch=lambda share: watch(f"replaying the merges: {share:.0%}"),
    )
    empty = [name for name, total in zip(names, counts.totals.tolist(), strict=True) if not total]
    if empty:
        raise MixtureError(f"the sample of {', '.join(empty)} has no two symbols in a row; give more text")
    program = _Program(counts, watch)
    if not program.counted.any():
        raise MixtureError("no merge of the tokenizer occurs in any sample; give more text, of the right kinds")
    size = len(names)
    best = program.solve(np.zeros(size), np.ones(size))
    bytes_per_pair = np.array([category.bytes for category in categories.values()]) / counts.totals

    def ranges(weights: np.ndarray) -> dict[str, Range]:
        shares = weights * best.alpha / (weights @ best.alpha)
        found = {}
        for index, name in enumerate(names):
            watch(f"the range of {name}")
            cost = np.where(np.arange(size) == index, weights, 0.0)
            low, high = (float(cost @ program.solve(sign * cost, weights, budget=best.slack).alpha) for sign in (1, -1))
            found[name] = Range(*(max(0.0, round(value, _DECIMALS)) for value in (float(shares[index]), low, high)))
        return found

    pairs, of_bytes = ranges(np.ones(size)), ranges(bytes_per_pair)
    return Mixture(
        pairs=pairs,
        bytes=of_bytes,
        slack=best.slack / _PER_MILLION,
        slack_bound=float(best.slack + program.excess(best)[0].clip(min=0).sum()) / _PER_MILLION,
        merges=int(program.counted.sum()),
        contradicted=program.contradicted(best.alpha),
        left_out=int((~program.counted).sum()),
        constraints=program.num_rows,
    )


@dataclass(frozen=True)
class _Solution:
    """``alpha`` float64 [K]; ``merge_slack`` [T] and ``pair_slack`` [pairs] in pairs per million, and their sum."""

    alpha: np.ndarray
    merge_slack: np.ndarray
    pair_slack: np.ndarray
    slack: float


class _Program:
    """The linear program with the constraints that were needed so far.

    Attributes:
        counted: bool [T], merges whose pair occurs.
    """

    def __init__(self, counts: PairCounts, watch: Callable[[str], None]) -> None:
        scale = _PER_MILLION / counts.totals
        self.counted = counts.merged.any(axis=1)
        self._counts = counts
        self._competing, self._merged = counts.counts * scale, counts.merged * scale
        self._tops = _IntervalMaximum(counts.start, counts.end, len(counts.merged))
        self._step = np.zeros(0, dtype=np.int64)
        self._segment = np.zeros(0, dtype=np.int64)
        self._num_pairs = int(counts.pair.max(initial=-1)) + 1
        self._watch = watch

    @property
    def num_rows(self) -> int:
        """Constraints so far."""
        return len(self._step)

    def solve(self, cost: np.ndarray, weights: np.ndarray, *, budget: float | None = None) -> _Solution:
        """The α with weights · α = 1 of the least slack; with a budget, of the least cost.

        Args:
            cost: float64 [K].
            weights: float64 [K], positive.
            budget: the most slack, in pairs per million of Σ α = 1.
        """
        size = len(weights)
        solution = _Solution(
            np.full(size, 1 / weights.sum()), np.zeros(len(self.counted)), np.zeros(self._num_pairs), 0.0
        )
        fresh = True
        while self._add_violated(solution) or fresh:
            fresh = False
            solution = self._solve(cost, weights, budget)
            self._watch(f"{self.num_rows:,} constraints")
        return solution

    def contradicted(self, alpha: np.ndarray) -> int:
        """Merges before which another pair is more frequent in the mixture."""
        without_slack = _Solution(alpha, np.zeros(len(self.counted)), np.zeros(self._num_pairs), 0.0)
        return int((self.excess(without_slack)[0] > _TOLERANCE).sum())

    def excess(self, solution: _Solution) -> tuple[np.ndarray, np.ndarray]:
        """For each merge by how much it violates a constraint most, and the segment that it does so with.

        Returns:
            float64 [T], -inf where nothing competes; int64 [T]. Given to the merges as slack, the violations make the
            solution a feasible one.
        """
        value = self._competing @ solution.alpha - solution.pair_slack[self._counts.pair]
        top = self._tops.of(value)
        excess = np.append(value, -np.inf)[top] - (self._merged @ solution.alpha + solution.merge_slack)
        return np.where(self.counted, excess, -np.inf), top

    def _add_violated(self, solution: _Solution) -> bool:
        """Add the constraint that each merge violates most; False if there is none to add."""
        excess, top = self.excess(solution)
        size = len(self._counts.pair)
        # What the solver holds to be satisfied would come back for ever.
        known = np.isin(np.arange(len(top)) * size + top, self._step * size + self._segment)
        room = np.bincount(self._step, minlength=len(top)) < COMPETITORS
        wrong = np.flatnonzero((excess > _TOLERANCE * solution.alpha.sum()) & room & ~known)
        self._step, self._segment = np.append(self._step, wrong), np.append(self._segment, top[wrong])
        return bool(len(wrong))

    def _solve(self, cost: np.ndarray, weights: np.ndarray, budget: float | None) -> _Solution:
        size, rows = len(weights), np.arange(self.num_rows)
        steps, step = np.unique(self._step, return_inverse=True)
        pairs, pair = np.unique(self._counts.pair[self._segment], return_inverse=True)
        slacks = len(steps) + len(pairs)
        surplus = csr_array(self._competing[self._segment] - self._merged[self._step])
        slack_of = csr_array(
            (-np.ones(2 * len(rows)), (np.tile(rows, 2), np.append(step, len(steps) + pair))), (len(rows), slacks)
        )
        constraints = hstack([surplus, slack_of], format="csr")
        objective = np.append(np.zeros(size), np.ones(slacks))
        if budget is not None:
            allowed = np.append(np.full(size, -budget * (1 + 1e-9) - _TOLERANCE), np.ones(slacks))
            constraints = vstack([constraints, csr_array(allowed[None])], format="csr")
            objective = np.append(cost, np.zeros(slacks))
        found = linprog(
            objective,
            A_ub=constraints,
            b_ub=np.zeros(constraints.shape[0]),
            A_eq=csr_array(np.append(weights, np.zeros(slacks))[None]),
            b_eq=[1.0],
            method="highs",
        )
        if not found.success:
            raise RuntimeError(f"the linear program was not solved: {found.message}")
        merge_slack, pair_slack = np.zeros(len(self.counted)), np.zeros(self._num_pairs)
        merge_slack[steps], pair_slack[pairs] = np.split(found.x[size:], [len(steps)])
        return _Solution(found.x[:size], merge_slack, pair_slack, float(found.x[size:].sum()))


class _IntervalMaximum:
    """Which of the segments that hold at a step has the greatest value, for all T steps at once.

    A segment is two overlapping blocks whose length is a power of two; a block's best is passed on to its halves.
    """

    def __init__(self, start: np.ndarray, end: np.ndarray, steps: int) -> None:
        self._steps = steps
        self._level = np.frexp(end - start)[1] - 1
        self._start, self._second = start, end - (1 << self._level)

    def of(self, value: np.ndarray) -> np.ndarray:
        """int64 [T]: index of a segment, -1 where there is none; ``value`` float64 [S]."""
        ascending = np.argsort(value, kind="stable")
        ranked = np.append(value, -np.inf)  # index -1: no segment
        best = np.full(self._steps, -1)
        for level in range(int(self._level.max(initial=0)), -1, -1):
            members = ascending[self._level[ascending] == level]
            here = np.full(self._steps, -1)
            # Of several values for a place the last one stays, which is the greatest.
            here[np.append(self._start[members], self._second[members])[_interleaved(len(members))]] = np.repeat(
                members, 2
            )
            best = np.where(ranked[best] > ranked[here], best, here)
            if level:
                half = 1 << (level - 1)
                shifted = np.append(np.full(half, -1), best[:-half])
                best = np.where(ranked[shifted] > ranked[best], shifted, best)
        return best


def _interleaved(size: int) -> np.ndarray:
    """0, size, 1, size + 1, ...: two lists of that size, one after the other, read in turn."""
    return np.arange(2 * size).reshape(2, size).T.ravel()
