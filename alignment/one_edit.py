"""Byte strings that are one edit apart, found by hashes of what is left when a byte is taken out.

Two strings are one edit apart just where one without one of its bytes is the other (an insertion), or both are the same
without the byte at one place (a substitution). That makes a join of hash tables of what would be a comparison of all
pairs, as in the symmetric-delete index of SymSpell.

Legend: Q queries, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_PLACE = np.uint64(0xD1B54A32D192ED03)


def nearest_within_one_edit(queries: Sequence[bytes], candidates: Sequence[bytes]) -> np.ndarray:
    """Index of the nearest candidate at a Levenshtein distance of at most 1: int64 [Q], -1 for none.

    Of equally near ones the first that has the query's first byte, else the first.
    """
    nearest = np.full(len(queries), -1, dtype=np.int64)
    if not len(queries) or not len(candidates):
        return nearest
    ours, theirs = _hashes(queries), _hashes(candidates)
    pairs = [
        _equal(ours.whole, theirs.whole),
        _renamed(_equal(ours.whole, theirs.shortened), candidates=theirs.owner),
        _renamed(_equal(ours.shortened, theirs.whole), queries=ours.owner),
        _renamed(_equal(ours.placed, theirs.placed), queries=ours.owner, candidates=theirs.owner),
    ]
    query, candidate = np.concatenate([first for first, _ in pairs]), np.concatenate([second for _, second in pairs])
    distance = cpdist(
        [queries[index] for index in query.tolist()],
        [candidates[index] for index in candidate.tolist()],
        scorer=Levenshtein.distance,
        dtype=np.int32,
        workers=-1,
    )
    # Equal hashes are no proof.
    query, candidate, distance = (each[distance <= 1] for each in (query, candidate, distance))
    other_first = first_bytes(queries)[query] != first_bytes(candidates)[candidate]
    order = np.lexsort((candidate, other_first, distance, query))
    found, first = np.unique(query[order], return_index=True)
    nearest[found] = candidate[order][first]
    return nearest


class _Hashes(NamedTuple):
    """Hashes of N strings, and of the M strings they become without one byte.

    Attributes:
        whole: uint64 [N].
        shortened: uint64 [M].
        placed: uint64 [M], mixed with the place of the missing byte.
        owner: int64 [M], the string that each was made of.
    """

    whole: np.ndarray
    shortened: np.ndarray
    placed: np.ndarray
    owner: np.ndarray


def _hashes(strings: Sequence[bytes]) -> _Hashes:
    """Polynomials in the bytes modulo 2**64: a byte is taken out by a subtraction and a division by the base."""
    lengths = np.array([len(string) for string in strings], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(strings)), lengths)
    place = np.arange(len(owner)) - starts[owner]
    powers = np.cumprod(np.full(int(lengths.max()) + 1, _BASE, dtype=np.uint64)) * _inverse()
    # One more than the byte: a zero byte counts.
    terms = (np.frombuffer(b"".join(strings), np.uint8).astype(np.uint64) + np.uint64(1)) * powers[place]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    before = sums[:-1] - sums[starts][owner]
    after = sums[starts + lengths][owner] - sums[1:]
    shortened = before + after * _inverse()
    return _Hashes(
        whole=sums[starts + lengths] - sums[starts],
        shortened=shortened,
        placed=shortened + (place.astype(np.uint64) + np.uint64(1)) * _PLACE,
        owner=owner,
    )


def _inverse() -> np.uint64:
    return np.uint64(pow(_BASE, -1, 2**64))


def _equal(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of indices at which the two arrays hold one value."""
    order = np.argsort(second, kind="stable")
    ordered = second[order]
    start, end = np.searchsorted(ordered, first), np.searchsorted(ordered, first, side="right")
    counts = end - start
    left = np.repeat(np.arange(len(first)), counts)
    within = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
    return left, order[start[left] + within]


def _renamed(
    pairs: tuple[np.ndarray, np.ndarray], *, queries: np.ndarray | None = None, candidates: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    first, second = pairs
    return first if queries is None else queries[first], second if candidates is None else candidates[second]


def first_bytes(strings: Sequence[bytes]) -> np.ndarray:
    """uint8 [N]: the first byte of each string."""
    return np.array([string[0] for string in strings], dtype=np.uint8)
