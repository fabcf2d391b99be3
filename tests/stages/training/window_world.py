"""Documents and windows for tests of the data path, where every window tells which document and epoch it is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.training.data.account import Account, DocumentFacts
from stages.training.data.blocks import DocumentWindows
from stages.training.data.order import ReadingOrder
from stages.training.data.prefetch import BlockSource
from stages.training.data.stream import WindowStream
from stages.training.data.windows import Document, Window, plain_windows


@dataclass(frozen=True)
class Numbered:
    """Makes windows of three tokens [document, epoch, window]; document n has ``windows(n)`` of them."""

    windows: Callable[[int], int] = lambda number: 1

    def prepare(self) -> None:
        """Nothing to load."""

    def make(self, document: Document, number: int, epoch: int, done: float) -> DocumentWindows:
        made = []
        for index in range(self.windows(number)):
            ids = np.array([number, epoch, index], dtype=np.int32)
            made += plain_windows(ids, np.ones(100_000, np.int32), (), 8)
        return DocumentWindows(made, DocumentFacts(document.id, document.domain, {"bytes": 7}))

    def describe(self, account: Account) -> dict[str, Any]:
        return {"documents": account.documents, "bytes": account.sizes["bytes"], "warnings": []}


def numbered(count: int, weight: float = 1.0, domain: str = "d") -> list[Document]:
    """``count`` documents without a text."""
    return [Document(f"{domain}/{number}", "", weight, domain=domain) for number in range(count)]


def source(
    documents: Sequence[Document], maker: Any = None, *, seed: int = 0, block_documents: int = 1024, **options: Any
) -> BlockSource:
    """The blocks of documents that are all at hand."""
    weights = np.array([document.weight for document in documents])
    order = ReadingOrder(weights, (), seed, block_documents)
    return BlockSource(documents, maker or Numbered(), order, **options)


def stream(documents: Sequence[Document], maker: Any = None, **options: Any) -> WindowStream:
    """A stream of windows that this process makes by itself."""
    return WindowStream(source(documents, maker, **options))


def names(windows: Sequence[Window]) -> list[tuple[int, int, int]]:
    """(document, epoch, window) of each."""
    return [tuple(window.student.ids.tolist()) for window in windows]
