"""TokAlign: old and new tokens matched by the company that they keep in one text (embedding_init.md §1.16).

Li et al., "TokAlign: Efficient Vocabulary Adaptation via Token Alignment" (ACL 2025). Both tokenizers encode the same
text, each vocabulary gets vectors of co-occurrence, and because the two spaces have nothing to do with each other every
vector is replaced by its cosines with those of shared tokens (Moschella et al., ICLR 2023). A new token takes the row
of the old token whose cosines are most like its own.

On purpose unlike the paper, the vectors are not GloVe's but a truncated SVD of the positive pointwise mutual
information of the same counts, which factorises nearly the same matrix (Levy et al., TACL 2015), needs no training and
is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.linalg import svds

_BLOCK_TOKENS = 1 << 20
_BLOCK_TARGETS = 512
_START_SEED = 0


@dataclass(frozen=True)
class TokenVectors:
    """Vectors of the n tokens of a vocabulary that a text has often enough.

    Attributes:
        ids: int64 [n], which tokens, in ascending order.
        counts: int64 [n], their occurrences.
        vectors: float32 [n, R].
    """

    ids: np.ndarray
    counts: np.ndarray
    vectors: np.ndarray


def token_vectors(
    documents: Sequence[np.ndarray],
    keys: np.ndarray,
    *,
    dimensions: int,
    window: int,
    min_count: int,
    between: Callable[[], None] = lambda: None,
) -> TokenVectors:
    """Co-occurrence vectors of the tokens of ``documents``.

    Args:
        documents: token ids of each, integer [T].
        keys: [V], a number for each token; the vectors belong to the keys and not to the ids, bit by bit.
        dimensions: R is this, or less where there are too few tokens.
        window, min_count: see ``cooccurrences``; rarer tokens are taken out of the text first.
        between: called between blocks of text; may raise to stop.
    """
    counts = np.zeros(len(keys), dtype=np.int64)
    for document in documents:
        np.add.at(counts, document, 1)
    kept = np.flatnonzero(counts >= min_count)
    kept = kept[np.argsort(keys[kept], kind="stable")]
    places = np.full(len(keys), -1, dtype=np.int64)
    places[kept] = np.arange(len(kept))
    frequent = [found[found >= 0] for found in (places[document] for document in documents)]
    vectors = svd_vectors(positive_pmi(cooccurrences(frequent, len(kept), window=window, between=between)), dimensions)
    order = np.argsort(kept)
    return TokenVectors(kept[order], counts[kept[order]], vectors[order].astype(np.float32))


def cooccurrences(
    documents: Sequence[np.ndarray], size: int, *, window: int, between: Callable[[], None] = lambda: None
) -> csr_array:
    """Symmetric co-occurrence counts, float64 [size, size]: a pair at distance d <= ``window`` counts 1/d both ways."""
    total = csr_array((size, size), dtype=np.float64)
    # A gap of the window's width keeps neighbours within their document.
    gap = np.full(window, -1, dtype=np.int64)
    block: list[np.ndarray] = []
    tokens = 0
    for number, document in enumerate(documents, start=1):
        block += [document, gap]
        tokens += len(document)
        if tokens >= _BLOCK_TOKENS or number == len(documents):
            between()
            total = total + _block_cooccurrences(np.concatenate(block), size, window)
            block, tokens = [], 0
    return csr_array(total + total.T)


def _block_cooccurrences(ids: np.ndarray, size: int, window: int) -> csr_array:
    """One direction of the counts of one sequence, where -1 is no token."""
    total = csr_array((size, size), dtype=np.float64)
    for distance in range(1, min(window, len(ids) - 1) + 1):
        left, right = ids[:-distance], ids[distance:]
        real = (left >= 0) & (right >= 0)
        ones = np.full(int(real.sum()), 1 / distance)
        total = total + csr_array(coo_array((ones, (left[real], right[real])), shape=(size, size)))
    return total


def positive_pmi(counts: csr_array) -> csr_array:
    """max(0, log(p(a, b) / (p(a) p(b)))) of symmetric counts; pairs that were never seen stay 0."""
    found = coo_array(counts)
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64)
    information = np.log(found.data * totals.sum() / (totals[found.row] * totals[found.col]))
    positive = csr_array((np.maximum(information, 0), (found.row, found.col)), shape=counts.shape)
    positive.eliminate_zeros()
    return positive


def svd_vectors(matrix: csr_array, dimensions: int) -> np.ndarray:
    """U sqrt(S) of the truncated singular value decomposition of a square [n, n] matrix, float64 [n, R].

    R is ``dimensions`` or n - 1 if that is less; directions whose singular value is zero are left out.
    """
    size = matrix.shape[0]
    rank = min(dimensions, size - 1)
    if rank < 1 or matrix.nnz == 0:
        return np.zeros((size, 0))
    start = np.random.default_rng(_START_SEED).standard_normal(size)
    left, values, _ = svds(matrix, k=rank, v0=start)
    real = values > values.max() * size * np.finfo(np.float64).eps
    return left[:, real] * np.sqrt(values[real])


def relative_vectors(vectors: np.ndarray, pivots: np.ndarray) -> np.ndarray:
    """The cosine of each vector [n, R] with each of the pivots [N, R], scaled to rows of length one: float32 [n, N]."""
    return _normalised(_normalised(vectors) @ _normalised(pivots).T)


def _normalised(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def most_alike(
    source: TokenVectors, target: TokenVectors, anchors: tuple[np.ndarray, np.ndarray], *, pivots: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each target token with a vector the source token that relates most alike to the shared tokens.

    Several target tokens may get the same one; of equally similar ones the lowest id is taken.

    Args:
        anchors: int64 [N] source and target ids of the shared tokens.
        pivots: number of shared tokens to use: those that are most frequent on the side where they are rarer.

    Returns:
        the chosen source ids int64 [n_target] and their similarities float32 [n_target]; no source ids at all, [0], if
        no shared token has vectors on both sides.
    """
    places = [np.searchsorted(side.ids, ids) for side, ids in zip((source, target), anchors, strict=True)]
    known = np.ones(len(anchors[0]), dtype=bool)
    for side, ids, place in zip((source, target), anchors, places, strict=True):
        known &= (place < len(side.ids)) & np.isin(ids, side.ids)
    source_places, target_places = places[0][known], places[1][known]
    frequency = np.minimum(source.counts[source_places], target.counts[target_places])
    chosen = np.lexsort((source_places, -frequency))[:pivots]
    if not len(chosen):
        return np.empty(0, np.int64), np.empty(0, np.float32)
    old = relative_vectors(source.vectors, source.vectors[source_places[chosen]])
    new = relative_vectors(target.vectors, target.vectors[target_places[chosen]])
    best = np.empty(len(new), dtype=np.int64)
    similarity = np.empty(len(new), dtype=np.float32)
    for start in range(0, len(new), _BLOCK_TARGETS):
        block = slice(start, start + _BLOCK_TARGETS)
        cosines = new[block] @ old.T
        best[block] = cosines.argmax(axis=1)
        similarity[block] = cosines.max(axis=1)
    return source.ids[best], similarity
