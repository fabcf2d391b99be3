"""Which passages of some texts occur in a large stream of other texts: memory for the former alone.

A passage is a run of symbols: bytes, or words as numbers. Runs are found by a rolling hash of 64 bits and then
compared symbol by symbol, so that what is found is there.

Legend: S symbols of a text, G passages (runs of ``size`` symbols) of all texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, of no regular bits: 2^64 divided by the golden ratio
_FILTER_BITS = 22
_WORD = re.compile(r"\w+")
UNKNOWN = 0
"""The number of words that no known text has."""


def rolling_hashes(symbols: np.ndarray, size: int) -> np.ndarray:
    """uint64 [S - size + 1]: a hash of every run of ``size`` of the ``symbols`` [S]; none of a shorter text.

    The hash is a polynomial in the multiplier modulo 2^64, of the symbols plus one. Runs of double length are put
    together from two halves, so that the work is S times the logarithm of ``size``.
    """
    if len(symbols) < size:
        return np.zeros(0, dtype=np.uint64)
    block = symbols.astype(np.uint64) + np.uint64(1)
    power, length = _MULTIPLIER, 1
    hashes: np.ndarray | None = None
    covered = 0
    remaining = size
    with np.errstate(over="ignore"):
        while remaining:
            if remaining & 1:
                hashes = block if hashes is None else hashes[: len(block) - covered] * power + block[covered:]
                covered += length
            remaining >>= 1
            if remaining:
                block = block[:-length] * power + block[length:]
                power, length = power * power, 2 * length
    return hashes[: len(symbols) - size + 1]


class Passages:
    """The runs of ``size`` symbols of some texts, and which of them other texts have.

    Args:
        texts: integers [S] each.
        size: of a run.
    """

    def __init__(self, texts: Sequence[np.ndarray], size: int) -> None:
        self._size = size
        self._texts = [np.asarray(text) for text in texts]
        hashes = [rolling_hashes(text, size) for text in self._texts]
        counts = [len(of_text) for of_text in hashes]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        flat = np.concatenate([np.zeros(0, np.uint64), *hashes])
        self._order = np.argsort(flat, kind="stable")
        self._sorted = flat[self._order]
        self._found = np.zeros(len(flat), dtype=bool)
        self._settled = np.zeros(len(flat), dtype=bool)  # where a hash begins whose runs are all found
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=bool)
        self._filter[_filter_slots(flat)] = True

    def look_in(self, symbols: np.ndarray) -> None:
        """Mark the runs that a text of other origin has."""
        hashes = rolling_hashes(symbols, self._size)
        maybe = np.flatnonzero(self._filter[_filter_slots(hashes)])
        if not len(maybe) or not len(self._sorted):
            return
        left = np.searchsorted(self._sorted, hashes[maybe])
        hits = left < len(self._sorted)
        hits[hits] = (self._sorted[left[hits]] == hashes[maybe[hits]]) & ~self._settled[left[hits]]
        for place, first in zip(maybe[hits].tolist(), left[hits].tolist(), strict=True):
            if not self._settled[first]:
                self._compare(symbols[place : place + self._size], first)

    def _compare(self, run: np.ndarray, first: int) -> None:
        """Mark the runs of one hash, sorted from ``first`` on, that are ``run``; the same ones are marked together."""
        last = int(np.searchsorted(self._sorted, self._sorted[first], side="right"))
        for passage in self._order[first:last].tolist():
            if self._found[passage]:
                continue
            text = int(np.searchsorted(self._starts, passage, side="right")) - 1
            begin = passage - int(self._starts[text])
            self._found[passage] = np.array_equal(self._texts[text][begin : begin + self._size], run)
        self._settled[first] = self._found[self._order[first:last]].all()

    def covered(self, text: int) -> np.ndarray:
        """bool [S]: the symbols of a text that lie in a run found elsewhere."""
        begins = self._found[self._starts[text] : self._starts[text + 1]]
        edges = np.zeros(len(self._texts[text]) + 1, dtype=np.int64)
        edges[: len(begins)] += begins
        edges[self._size : self._size + len(begins)] -= begins
        return np.cumsum(edges[:-1]) > 0


def _filter_slots(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)


class Words:
    """Words as numbers from 1 on, in the order in which they first come; case does not count."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def learn(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The words of a text as numbers, int64 [S], and the byte at which each begins and ends, int64 [S, 2]."""
        numbers, places = [], []
        byte = character = 0
        for match in _WORD.finditer(text):
            numbers.append(self._numbers.setdefault(match[0].lower(), len(self._numbers) + 1))
            begin = byte + len(text[character : match.start()].encode())
            byte, character = begin + len(match[0].encode()), match.end()
            places.append((begin, byte))
        return np.array(numbers, np.int64), np.array(places, np.int64).reshape(-1, 2)

    def known(self, text: str) -> Iterable[np.ndarray]:
        """The runs of words of a text that are all known, int64 each."""
        numbers = np.array([self._numbers.get(word.lower(), UNKNOWN) for word in _WORD.findall(text)], np.int64)
        for run in np.split(numbers, np.flatnonzero(numbers == UNKNOWN)):
            known = run[run != UNKNOWN]
            if len(known):
                yield known
