"""Tokens of two vocabularies that are spelled nearly alike: Levenshtein distance between their bytes.

What MinED maps one vocabulary onto the other by, and what CDM may match in context. Built once a pair of tokenizers;
distances are computed in C++ (``rapidfuzz``), in blocks of bounded memory.

Legend: Q queries, C candidates, L neighbours of a query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from alignment.byte_view import ByteView
from alignment.one_edit import first_bytes, nearest_within_one_edit
from alignment.vocab import VocabAlignment

_BLOCK_PAIRS = 16_000_000  # two bytes a distance, and twice as much while the least ones are found


def nearest_tokens(source: ByteView, target: ByteView, alignment: VocabAlignment) -> np.ndarray:
    """For every token of ``target`` the one of ``source`` spelled most alike: int64 [V_target], -1 for none.

    A token with a counterpart (the same bytes, or the same role) has that. Special tokens without one have none.

    Args:
        alignment: ``align_vocabularies(source, target)``.
    """
    nearest = counterparts(alignment)
    queries = np.flatnonzero((target.byte_lengths > 0) & (nearest < 0))
    candidates = np.flatnonzero(source.byte_lengths)
    nearest[queries] = candidates[nearest_strings(_spelled(target, queries), _spelled(source, candidates))]
    return nearest


def similar_tokens(
    source: ByteView,
    target: ByteView,
    to_target: VocabAlignment,
    to_source: VocabAlignment,
    *,
    within: float,
    most: int,
) -> np.ndarray:
    """For every token of ``target`` those of ``source`` spelled alike, nearest first: int64 [V_target, most], -1 pads.

    Only tokens without a counterpart take part, on both sides: one that has a counterpart is that one's alone.

    Args:
        to_target: ``align_vocabularies(source, target)``.
        to_source: ``align_vocabularies(target, source)``.
        within: largest distance, as a share of the two tokens' bytes together; itself not included.
        most: tokens kept for one, of equally near ones those with the lower ids.
    """
    similar = np.full((target.vocab_size, most), -1, dtype=np.int64)
    queries = np.flatnonzero((target.byte_lengths > 0) & ~to_target.copied)
    candidates = np.flatnonzero((source.byte_lengths > 0) & ~to_source.copied)
    if len(queries) and len(candidates):
        found = similar_strings(_spelled(target, queries), _spelled(source, candidates), within=within, most=most)
        similar[queries] = np.where(found >= 0, candidates[found], -1)
    return similar


def counterparts(alignment: VocabAlignment) -> np.ndarray:
    """For every target token the one source token that it corresponds to: int64 [V_target], -1 for none."""
    found = np.full(alignment.target_size, -1, dtype=np.int64)
    copied = np.flatnonzero(alignment.copied)
    found[copied] = alignment.pieces[alignment.offsets[copied]]
    return found


def nearest_strings(queries: Sequence[bytes], candidates: Sequence[bytes]) -> np.ndarray:
    """Index of the candidate at the least Levenshtein distance from each query: int64 [Q].

    Of equally near ones the first that has the query's first byte (a space above all), else the first.

    Raises:
        ValueError: there are queries and no candidate, or an empty string.
    """
    if (len(queries) and not len(candidates)) or not all(queries) or not all(candidates):
        raise ValueError("the nearest string needs at least one candidate, and no string may be empty")
    nearest = nearest_within_one_edit(queries, candidates)
    undecided = np.flatnonzero(nearest < 0)
    query_lengths, candidate_lengths = _lengths(queries), _lengths(candidates)
    query_firsts, candidate_firsts = first_bytes(queries), first_bytes(candidates)
    # Distance, another first byte, place: in this order, as one number.
    least = np.full(len(queries), np.iinfo(np.int64).max)
    for length in np.unique(query_lengths[undecided]).tolist():
        members, radius = undecided[query_lengths[undecided] == length], 2
        window = np.flatnonzero(np.abs(candidate_lengths - length) <= radius)
        while len(members):
            near = _at(candidates, window)
            for block in _blocks(len(members), len(window)):
                rows = members[block]
                costs = 2 * _distances(_at(queries, rows), near)
                costs += query_firsts[rows][:, None] != candidate_firsts[window]
                best = costs.argmin(1)
                found = costs[np.arange(len(rows)), best].astype(np.int64) * len(candidates) + window[best]
                least[rows] = np.minimum(least[rows], found)
            # A distance is at least the difference of the lengths: whatever was not looked at is further away.
            members = members[least[members] // len(candidates) // 2 > radius]
            radius += 1
            window = np.flatnonzero(np.abs(candidate_lengths - length) == radius)
    return np.where(nearest < 0, least % max(1, len(candidates)), nearest)


def similar_strings(queries: Sequence[bytes], candidates: Sequence[bytes], *, within: float, most: int) -> np.ndarray:
    """Indices of the candidates nearer than ``within`` times the two lengths together: int64 [Q, most], -1 pads.

    Nearest first, by distance as a share of the lengths; of equally near ones the first.
    """
    similar = np.full((len(queries), most), -1, dtype=np.int64)
    query_lengths, candidate_lengths = _lengths(queries), _lengths(candidates)
    for length in np.unique(query_lengths).tolist():
        members = np.flatnonzero(query_lengths == length)
        both = candidate_lengths + length
        window = np.flatnonzero(np.abs(candidate_lengths - length) < within * both)
        near = _at(candidates, window)
        for block in _blocks(len(members), len(window)):
            rows = members[block]
            shares = _distances(_at(queries, rows), near) / both[window].astype(np.float32)
            row, column = np.nonzero(shares < within)
            order = np.lexsort((column, shares[row, column], row))
            row, column = row[order], column[order]
            rank = np.arange(len(row)) - np.searchsorted(row, row)
            kept = rank < most
            similar[rows[row[kept]], rank[kept]] = window[column[kept]]
    return similar


def _distances(queries: Sequence[bytes], candidates: Sequence[bytes]) -> np.ndarray:
    """Levenshtein distances: uint16 [Q, C]."""
    return cdist(queries, candidates, scorer=Levenshtein.distance, dtype=np.uint16, workers=-1)


def _at(strings: Sequence[bytes], indices: np.ndarray) -> list[bytes]:
    return [strings[index] for index in indices.tolist()]


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of so many rows that rows times columns stays bounded; none where there is no column."""
    step = max(1, _BLOCK_PAIRS // max(1, columns))
    yield from (slice(start, min(start + step, rows)) for start in range(0, rows if columns else 0, step))


def _lengths(strings: Sequence[bytes]) -> np.ndarray:
    return np.array([len(string) for string in strings], dtype=np.int64)


def _spelled(view: ByteView, tokens: np.ndarray) -> list[bytes]:
    return [view.token_bytes(token) or b"" for token in tokens.tolist()]
