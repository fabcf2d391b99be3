"""In which order documents are read: a function of the seed and of the documents' weights, and of nothing else.

An epoch reads every document as often as its weight says. Its readings are cut into blocks, and a block is a function
of (seed, epoch, block): it can be made by any process, and made again when training goes on from the middle of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.training.random import generator

# The last number of what seeds a draw. Objectives and stages draw from other streams, whose names end otherwise.
_WINDOWS, _DOCUMENTS = 1, 2


@dataclass(frozen=True)
class Streamed:
    """A set of documents that is read from its start to its end, and then from its start again.

    Attributes:
        first: number of its first document among all.
        count: how many documents it has.
        weight: how often it is read in an epoch, on average.
    """

    first: int
    count: int
    weight: float


@dataclass(frozen=True)
class Readings:
    """What a block reads.

    Attributes:
        numbers: int64 [R], numbers of documents; one that is read twice is there twice.
        new: bool [R], True where no earlier reading of the whole training is of the same document.
    """

    numbers: np.ndarray
    new: np.ndarray


class ReadingOrder:
    """The blocks of every epoch.

    Args:
        weights: float [N], of the documents that can be read in any order: mean readings in an epoch. A weight of 1.5
            reads a document once in every epoch and once more in about half of them.
        streamed: sets that are read in their own order. Every block takes its share of an epoch's documents.
        seed: of the order.
        block_documents: readings in a block, about.
    """

    def __init__(self, weights: np.ndarray, streamed: Sequence[Streamed], seed: int, block_documents: int) -> None:
        self._weights = weights
        self._streamed = streamed
        self._seed = seed
        self._block_documents = block_documents
        # Of the last epochs: what is made ahead of the training may belong to a later one.
        self._shuffled: dict[int, Readings] = {}
        self._read_before = np.zeros(len(weights), dtype=bool)
        self._counted_epochs = 0

    @property
    def mean_readings(self) -> float:
        """Readings of documents in an epoch, on average."""
        return float(self._weights.sum()) + sum(each.weight * each.count for each in self._streamed)

    def blocks(self, epoch: int) -> int:
        """How many blocks an epoch has; one at least."""
        readings = len(self._shuffle(epoch).numbers) + sum(len(_ordinals(each, epoch)) for each in self._streamed)
        return max(1, -(-readings // self._block_documents))

    def readings(self, epoch: int, block: int) -> Readings:
        """What block ``block`` of ``epoch`` reads."""
        count, shuffled = self.blocks(epoch), self._shuffle(epoch)
        mine = _share(range(len(shuffled.numbers)), block, count)
        numbers, new = [shuffled.numbers[mine.start : mine.stop]], [shuffled.new[mine.start : mine.stop]]
        for each in self._streamed:
            ordinals = np.array(_share(_ordinals(each, epoch), block, count), dtype=np.int64)
            numbers.append(each.first + ordinals % each.count)
            new.append(ordinals < each.count)
        return Readings(np.concatenate(numbers).astype(np.int64), np.concatenate(new))

    def permutation(self, epoch: int, block: int, windows: int) -> np.ndarray:
        """int64 [windows]: in which order training takes a block's windows."""
        return generator(self._seed, epoch, block, _WINDOWS).permutation(windows)

    def _shuffle(self, epoch: int) -> Readings:
        """An epoch's readings of the documents that can be read in any order."""
        if epoch not in self._shuffled:
            self._count_earlier(epoch)
            repeats = self._repeats(epoch)
            numbers = np.repeat(np.arange(len(repeats), dtype=np.int32 if len(repeats) < 2**31 else np.int64), repeats)
            generator(self._seed, epoch, 0, _DOCUMENTS).shuffle(numbers)
            new = ~self._read_before[numbers]
            if repeats.max(initial=0) > 1:
                again = np.ones(len(numbers), dtype=bool)
                again[np.unique(numbers, return_index=True)[1]] = False
                new &= ~again
            kept = {known: readings for known, readings in self._shuffled.items() if known >= epoch - 2}
            self._shuffled = kept | {epoch: Readings(numbers, new)}
        return self._shuffled[epoch]

    def _count_earlier(self, epoch: int) -> None:
        """Bring ``_read_before`` to the start of ``epoch``."""
        if epoch < self._counted_epochs:
            self._read_before[:] = False
            self._counted_epochs = 0
        for earlier in range(self._counted_epochs, epoch):
            self._read_before |= self._repeats(earlier) > 0
        self._counted_epochs = epoch

    def _repeats(self, epoch: int) -> np.ndarray:
        """int64 [N]: how often ``epoch`` reads each document."""
        more = generator(self._seed, epoch, 1, _DOCUMENTS).random(len(self._weights)) < self._weights % 1
        return self._weights.astype(np.int64) + more


def _ordinals(streamed: Streamed, epoch: int) -> range:
    """Which readings of a streamed set, counted over the whole training, an epoch takes."""
    start, stop = (math.floor(streamed.weight * streamed.count * number) for number in (epoch, epoch + 1))
    return range(start, stop)


def _share(values: range, part: int, parts: int) -> range:
    """Part ``part`` of ``parts`` parts of about equal length."""
    return values[len(values) * part // parts : len(values) * (part + 1) // parts]
