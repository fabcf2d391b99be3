"""Which words of a sentence and its translation belong together: counts of links over a parallel corpus.

IBM model 2 with the diagonal prior of fast_align (Dyer et al., NAACL 2013), trained in both directions::

    p(e_j | f) = p0 t(e_j | NULL) + (1 - p0) sum_i d(i | j, m, n) t(e_j | f_i)
    d(i | j, m, n)  is proportional to  exp(-tension |(i + 1) / m - (j + 1) / n|)

with a sparse Dirichlet prior on t. On purpose unlike fast_align, the tension is not estimated, and the two directions
are not symmetrised by a heuristic: each adds half of every link that it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.special import digamma

TENSION = 4.0
NULL_PROBABILITY = 0.08
_DIRICHLET = 0.01
_BLOCK_CELLS = 1 << 21  # pairs of positions held at once; some 60 bytes each


@dataclass(frozen=True)
class Sentences:
    """One side of a corpus of S sentences, of W words in all.

    Attributes:
        words: int32 [W], numbers of words, from 0.
        offsets: int64 [S + 1]: sentence s is ``words[offsets[s]:offsets[s + 1]]``.
    """

    words: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int64 [S]: words in each sentence."""
        return np.diff(self.offsets)


def link_counts(
    source: Sentences,
    target: Sentences,
    *,
    source_words: int,
    target_words: int,
    iterations: int,
    between: Callable[[], None] = lambda: None,
) -> csr_array:
    """How often each source word is linked with each target word, float64 [source_words, target_words].

    A link that both directions find counts 1, one that a single direction finds counts 1/2. Sentence pairs with an
    empty side are left out.

    Args:
        source_words, target_words: how many different words each side has.
        iterations: of expectation maximisation, in each direction.
        between: called before each block of sentence pairs; may raise to stop.
    """
    forward = _directed(source, target, source_words, target_words, iterations, between)
    backward = _directed(target, source, target_words, source_words, iterations, between)
    return csr_array(forward / 2 + backward.T / 2)


def cells(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All positions of G tables of ``rows[g]`` x ``columns[g]``: int64 g, row and column, the row running fastest."""
    sizes = rows * columns
    table = np.repeat(np.arange(len(rows)), sizes)
    column, row = np.divmod(np.arange(len(table)) - np.repeat(np.cumsum(sizes) - sizes, sizes), rows[table])
    return table, row, column


@dataclass(frozen=True)
class _Block:
    """The cells of some sentence pairs; all cells of one explained word lie together.

    Attributes:
        pairs: int64 [C], given word * number of explained words + explained word.
        prior: float64 [C], probability of the position, without the NULL word's share.
        starts: int64 [P], the first cell of each explained position; every position has one.
        explained: int32 [P], the words there.
    """

    pairs: np.ndarray
    prior: np.ndarray
    starts: np.ndarray
    explained: np.ndarray

    @property
    def position(self) -> np.ndarray:
        """int64 [C], the explained position of each cell."""
        return np.repeat(np.arange(len(self.starts)), np.diff(self.starts, append=len(self.pairs)))


@dataclass(frozen=True)
class _Lexicon:
    """Translation probabilities of the G given words that stand beside the E explained words somewhere.

    Attributes:
        pairs: int64 [N], given word * E + explained word, in ascending order.
        probabilities: float64 [N].
        null: float64 [E], of words that nothing explains.
    """

    pairs: np.ndarray
    probabilities: np.ndarray
    null: np.ndarray

    def scores(self, block: _Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The entry of each cell, int64 [C], its joint probability [C], and that of NULL at each position [P]."""
        entries = np.searchsorted(self.pairs, block.pairs)
        return entries, block.prior * self.probabilities[entries], NULL_PROBABILITY * self.null[block.explained]


def _directed(
    given: Sentences,
    explained: Sentences,
    given_words: int,
    explained_words: int,
    iterations: int,
    between: Callable[[], None],
) -> csr_array:
    """How often each given word is the best explanation of each explained word."""

    def blocks() -> Iterator[_Block]:
        for block in _blocks(given, explained, explained_words):
            between()
            yield block

    pairs = np.unique(np.concatenate([np.empty(0, np.int64), *(np.unique(block.pairs) for block in blocks())]))
    lexicon = _Lexicon(pairs, np.ones(len(pairs)), np.ones(explained_words))
    for _ in range(iterations):
        lexicon = _reestimated(lexicon, blocks(), given_words)
    links = np.zeros(len(pairs))
    for block in blocks():
        entries, scores, null_scores = lexicon.scores(block)
        best = np.maximum.reduceat(scores, block.starts)
        position = block.position
        chosen = np.flatnonzero((scores == best[position]) & (best > null_scores)[position])
        _, first = np.unique(position[chosen], return_index=True)
        links += np.bincount(entries[chosen[first]], minlength=len(pairs))
    places = np.divmod(pairs, max(explained_words, 1))
    counts = csr_array((links, places), shape=(given_words, explained_words))
    counts.eliminate_zeros()
    return counts


def _reestimated(lexicon: _Lexicon, blocks: Iterator[_Block], given_words: int) -> _Lexicon:
    """One iteration of expectation maximisation."""
    explained_words = len(lexicon.null)
    counts, null_counts = np.zeros_like(lexicon.probabilities), np.zeros_like(lexicon.null)
    for block in blocks:
        entries, scores, null_scores = lexicon.scores(block)
        totals = np.add.reduceat(scores, block.starts) + null_scores
        counts += np.bincount(entries, scores / totals[block.position], minlength=len(counts))
        null_counts += np.bincount(block.explained, null_scores / totals, minlength=explained_words)
    givens = lexicon.pairs // max(explained_words, 1)
    nothing = np.zeros(explained_words, dtype=np.int64)
    return _Lexicon(
        lexicon.pairs,
        _normalised(counts, givens, given_words, explained_words),
        _normalised(null_counts, nothing, 1, explained_words),
    )


def _normalised(counts: np.ndarray, givens: np.ndarray, given_words: int, explained_words: int) -> np.ndarray:
    """Expected counts as probabilities for each given word, by variational Bayes: rare words explain little else."""
    totals = np.bincount(givens, counts, minlength=given_words) + _DIRICHLET * explained_words
    return np.exp(digamma(counts + _DIRICHLET) - digamma(totals)[givens])


def _blocks(given: Sentences, explained: Sentences, explained_words: int) -> Iterator[_Block]:
    rows, columns = given.lengths, explained.lengths
    kept = np.flatnonzero((rows > 0) & (columns > 0))
    total = np.cumsum(rows[kept] * columns[kept])
    ends = np.searchsorted(
        total, np.arange(_BLOCK_CELLS, (total[-1] if len(total) else 0) + _BLOCK_CELLS, _BLOCK_CELLS)
    )
    for sentences in np.split(kept, np.unique(ends)):
        if len(sentences):
            yield _block(given, explained, sentences, explained_words)


def _block(given: Sentences, explained: Sentences, sentences: np.ndarray, explained_words: int) -> _Block:
    rows, columns = given.lengths[sentences], explained.lengths[sentences]
    sentence, i, j = cells(rows, columns)
    distance = np.abs((i + 1) / rows[sentence] - (j + 1) / columns[sentence])
    weights = np.exp(-TENSION * distance)
    starts = np.flatnonzero(i == 0)
    norms = np.repeat(np.add.reduceat(weights, starts), rows[sentence[starts]])
    given_word = given.words[given.offsets[sentences][sentence] + i].astype(np.int64)
    explained_word = explained.words[explained.offsets[sentences][sentence] + j]
    return _Block(
        pairs=given_word * explained_words + explained_word,
        prior=(1 - NULL_PROBABILITY) * weights / norms,
        starts=starts,
        explained=explained_word[starts],
    )
