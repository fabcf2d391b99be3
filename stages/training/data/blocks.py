"""Blocks of documents -> blocks of windows, made part by part, in any process, and put together in one order.

A part is some documents of a block. It is closed up into bytes where it is made and opened where it is used, so that
it passes from worker to trainer, and from one process of the training to the others, without being taken apart.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from stages.training.data.account import Account, DocumentFacts
from stages.training.data.order import ReadingOrder, Readings
from stages.training.data.window_table import WindowTable
from stages.training.data.windows import Document, Window

_PART_DOCUMENTS = 32  # a few per worker and block, so that no worker waits long for another


class DocumentWindows(NamedTuple):
    """What is made of one document."""

    windows: Sequence[Window]
    facts: DocumentFacts


class WindowMaker(Protocol):
    """Cuts documents into windows; what it gives depends on its arguments and its own options only."""

    def prepare(self) -> None:
        """Load what every document needs; called once, before worker processes are split off, which then share it."""

    def make(self, document: Document, number: int, epoch: int, done: float) -> DocumentWindows:
        """The windows of document ``number`` in one epoch, read when a share ``done`` of the training is.

        Raises:
            StageError: the document cannot be trained on.
        """

    def describe(self, account: Account) -> dict[str, Any]:
        """An account of this maker's documents, as JSON values with the ``warnings`` that a person should read."""


@dataclass(frozen=True)
class Part:
    """The windows of some documents.

    Attributes:
        windows: of all of them, one document after the other.
        counts: int64 [D], how many windows each document has.
        facts: of each document.
    """

    windows: WindowTable
    counts: np.ndarray
    facts: Sequence[DocumentFacts]


def make_part(
    documents: Sequence[Document], maker: WindowMaker, epoch: int, done: float, numbers: Sequence[int]
) -> bytes:
    """The ``Part`` of some documents, closed up.

    Raises:
        StageError: a document cannot be read or trained on.
    """
    made = [maker.make(documents[number], number, epoch, done) for number in numbers]
    windows = WindowTable([window for each in made for window in each.windows])
    counts = np.array([len(each.windows) for each in made], dtype=np.int64)
    return pickle.dumps(Part(windows, counts, [each.facts for each in made]), protocol=pickle.HIGHEST_PROTOCOL)


def open_part(data: bytes) -> Part:
    """What ``make_part`` closed up."""
    return pickle.loads(data)


def divide(documents: int, processes: int) -> list[list[range]]:
    """Which documents of a block each process makes, in parts: process -> part -> indices of documents."""
    shares = (range(process, documents, processes) for process in range(processes))
    return [[share[i : i + _PART_DOCUMENTS] for i in range(0, len(share), _PART_DOCUMENTS)] for share in shares]


class Block(Sequence[Window]):
    """The windows of one block in the order in which training takes them.

    Attributes:
        epoch, number: which block.
    """

    def __init__(
        self, epoch: int, number: int, readings: Readings, parts: Sequence[tuple[range, Part]], order: ReadingOrder
    ) -> None:
        """
        Args:
            readings: what the block reads.
            parts: each with which of ``distinct(readings)`` it holds; together all of them.
            order: of the windows.
        """
        self.epoch, self.number = epoch, number
        self._parts = [part for _, part in parts]
        self._facts: dict[int, DocumentFacts] = {}
        place = {document: index for index, document in enumerate(distinct(readings))}
        part_of, start_of, count_of = np.zeros((3, len(place)), dtype=np.int64)
        for index, (documents, part) in enumerate(parts):
            self._facts.update(zip(documents, part.facts, strict=True))
            mine = slice(documents.start, documents.stop, documents.step)
            part_of[mine], count_of[mine] = index, part.counts
            start_of[mine] = np.cumsum(part.counts) - part.counts
        read = np.array([place[document] for document in readings.numbers.tolist()], dtype=np.int64)
        self._new = read[readings.new]
        counts = count_of[read]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        shuffled = order.permutation(epoch, number, len(within))
        self._document = np.repeat(read, counts)[shuffled]
        self._part = part_of[self._document]
        self._window = start_of[self._document] + within[shuffled]
        self._windows_of = count_of

    def __len__(self) -> int:
        return len(self._window)

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return self._parts[self._part[index]].windows[int(self._window[index])]

    def read_into(self, account: Account) -> None:
        """Add the documents that were not read before."""
        for document in self._new.tolist():
            account.read(self._facts[document])

    def draw_into(self, account: Account, index: int, window: Window) -> None:
        """Add window ``index``, which training took."""
        document = int(self._document[index])
        size = int(window.student.lengths.sum())
        account.draw(self._facts[document].domain, size, int(self._windows_of[document]))


def distinct(readings: Readings) -> list[int]:
    """The numbers of the documents, each once, in the order of their first reading."""
    return list(dict.fromkeys(readings.numbers.tolist()))
