"""Weights over the source tokens that a target token meets in text: the "align" heuristic of Yamaguchi et al. (2024).

A text is tokenized both ways. Wherever the bytes of a target token overlap those of a source token, the pair counts
once; row(t) = sum over s of n(t, s) E[s] / sum over s of n(t, s). Unlike the pieces that spell a token, these know in
which surroundings it occurs. Source: embedding_init.md §1.2. The paper's code maps tokens by character offsets; bytes
also separate the parts of a character.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alignment.byte_view import ByteView
from alignment.encoding import Encoding
from alignment.initializers.pieces import padded_positions
from alignment.initializers.rows import SparseRows

_BLOCK_CHARACTERS = 1 << 21


@dataclass(frozen=True)
class CoOccurrences:
    """How often each of V target tokens overlapped which source tokens: rows of a sparse matrix (CSR).

    Attributes:
        offsets: int64 [V + 1].
        sources: int32 [offsets[V]], within a row the most frequent first, of equally frequent ones the lowest id.
        counts: int64 [offsets[V]].
    """

    offsets: np.ndarray
    sources: np.ndarray
    counts: np.ndarray

    def arrays(self) -> Mapping[str, np.ndarray]:
        """What the constructor takes, by name."""
        return asdict(self)

    def rows(self, target_ids: Tensor, most: int) -> SparseRows:
        """Weights proportional to the counts for each target id, int64 [M], over its ``most`` most frequent sources.

        A target id that never occurred has no weights.
        """
        positions, used = padded_positions(self.offsets, target_ids, most)
        sources, counts = torch.from_numpy(self.sources).long(), torch.from_numpy(self.counts)
        indices = torch.where(used, sources[positions] if len(sources) else 0, -1)
        weights = torch.where(used, counts[positions].double() if len(counts) else 0.0, 0.0)
        return SparseRows(indices, (weights / weights.sum(dim=1, keepdim=True).clamp(min=1)).float())


class _Spans(NamedTuple):
    """Tokens of several texts laid end to end, with the bytes that they cover; neither starts nor ends decrease."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def count_co_occurrences(source: ByteView, target: ByteView, texts: Iterable[str], source_rows: int) -> CoOccurrences:
    """Count overlaps of target and source tokens in ``texts``.

    Args:
        source_rows: source ids from there on have no row and are not counted.

    Raises:
        InexactEncoding: a text has lone surrogates and thus no bytes.
    """
    pairs, counts = np.empty((2, 0), dtype=np.int64)
    for block in _blocks(texts):
        found = _overlaps(_spans(target, block), _spans(source, block), source_rows)
        pairs, counts = _merged(pairs, counts, *np.unique(found, return_counts=True))
    targets, sources = np.divmod(pairs, max(source_rows, 1))
    order = np.lexsort((sources, -counts, targets))
    offsets = np.searchsorted(targets, np.arange(target.vocab_size + 1))
    return CoOccurrences(offsets.astype(np.int64), sources[order].astype(np.int32), counts[order])


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts, as many at a time as have ``_BLOCK_CHARACTERS`` characters."""
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= _BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _spans(view: ByteView, texts: Sequence[str]) -> _Spans:
    encodings = view.encode_batch(texts, exact=False)
    sizes = np.array([encoding.text_bytes for encoding in encodings], dtype=np.int64)
    bases = np.cumsum(sizes) - sizes
    parts = [_text_spans(encoding, base) for encoding, base in zip(encodings, bases.tolist(), strict=True)]
    return _Spans(*map(np.concatenate, zip(*parts, strict=True)))


def _text_spans(encoding: Encoding, base: int) -> _Spans:
    """The tokens of one text that stand for bytes; those of a rewritten stretch all stand for the whole of it."""
    place = np.arange(len(encoding.ids))
    before = np.maximum.accumulate(np.where(encoding.boundary, place, -1))
    before = np.append(-1, before[:-1]) if len(place) else before
    after = np.minimum.accumulate(np.where(encoding.boundary, place, len(place))[::-1])[::-1]
    edges = np.concatenate([[0], np.minimum(encoding.byte_ends, encoding.text_bytes), [encoding.text_bytes]])
    starts, ends = edges[before + 1], edges[after + 1]
    kept = (ends > starts) & ~encoding.special
    return _Spans(encoding.ids[kept].astype(np.int64), starts[kept] + base, ends[kept] + base)


def _overlaps(target: _Spans, source: _Spans, source_rows: int) -> np.ndarray:
    """int64: target id * ``source_rows`` + source id of every pair of tokens that share a byte."""
    first = np.searchsorted(source.ends, target.starts, side="right")
    counts = np.searchsorted(source.starts, target.ends, side="left") - first
    before = np.cumsum(counts) - counts
    met = source.ids[np.arange(counts.sum()) + np.repeat(first - before, counts)]
    pairs = np.repeat(target.ids, counts) * source_rows + met
    return pairs[met < source_rows]


def _merged(
    pairs: np.ndarray, counts: np.ndarray, more_pairs: np.ndarray, more_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two tables of distinct sorted pairs and their counts added up."""
    merged, place = np.unique(np.concatenate([pairs, more_pairs]), return_inverse=True)
    sums = np.zeros(len(merged), dtype=np.int64)
    sums[place[: len(pairs)]] = counts
    sums[place[len(pairs) :]] += more_counts
    return merged, sums
