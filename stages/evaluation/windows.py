"""What every model is scored on: documents, cut into the same byte windows for all tokenizers.

A tokenizer can only be cut where one of its tokens ends, and two tokenizers only where tokens of both end. Cutting
and starting to score at boundaries common to all tokenizations gives every model exactly the same bytes to predict
after exactly the same bytes of context, so the sums of nats compare.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.stage import StageError


@dataclass(frozen=True)
class Document:
    """One held-out text; its domain names the column it counts in."""

    id: str
    domain: str
    text: str


class Span(NamedTuple):
    """A window in bytes of its document: context from ``begin``, scored from ``scored`` up to ``end``."""

    begin: int
    scored: int
    end: int


@dataclass(frozen=True)
class Window:
    """One span as one tokenizer spells it.

    Attributes:
        document: index of the document.
        ids: int32 [T], all tokens of the span.
        ends: int64 [T], where each token ends, in bytes of the document.
        first_scored: index of the first scored token; at least 1, so every scored token has context.
    """

    document: int
    ids: np.ndarray
    ends: np.ndarray
    first_scored: int

    @property
    def begin(self) -> int:
        """First scored byte of the document."""
        return int(self.ends[self.first_scored - 1])

    @property
    def scored_bytes(self) -> int:
        """Number of scored bytes."""
        return int(self.ends[-1]) - self.begin

    @property
    def scored_tokens(self) -> int:
        """Number of scored tokens."""
        return len(self.ids) - self.first_scored


def read_documents(path: Path, max_documents: int | None) -> list[Document]:
    """The documents of a documents artifact, domains together; the first ``max_documents`` of each domain.

    Raises:
        StageError: a document is a conversation.
    """
    with (path / "documents.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    for record in records:
        if "text" not in record:
            raise StageError(
                f"document {record['id']} is a conversation; evaluate scores plain text: leave it out of data.eval"
            )
    domains = list(dict.fromkeys(record["domain"] for record in records))
    records.sort(key=lambda record: domains.index(record["domain"]))
    kept = [list(group)[:max_documents] for _, group in groupby(records, key=lambda record: record["domain"])]
    return [Document(record["id"], record["domain"], record["text"]) for group in kept for record in group]


def common_boundaries(ends: Sequence[np.ndarray]) -> np.ndarray:
    """Byte positions after the first byte where tokens of every tokenization end, ascending, int64 [C]."""
    common = reduce(np.intersect1d, ends)
    return common[common > 0]


def cut(boundaries: np.ndarray, window_bytes: int) -> list[Span]:
    """Cut a document at common ``boundaries`` into spans of at most ``window_bytes``.

    The bytes up to a span's first common boundary are context only. A stretch of more than ``window_bytes`` without
    a common boundary, or a last span without a second one, has nothing to score and gives no span.
    """
    spans = []
    begin = 0
    while begin < (boundaries[-1] if len(boundaries) else 0):
        scored = int(boundaries[np.searchsorted(boundaries, begin, side="right")])
        within = int(np.searchsorted(boundaries, begin + window_bytes, side="right"))
        end = max(scored, int(boundaries[within - 1]) if within else 0)
        if end > scored:
            spans.append(Span(begin, scored, end))
        begin = end
    return spans


def window(document: int, ids: np.ndarray, ends: np.ndarray, span: Span) -> Window:
    """The tokens of ``span``, given a whole document's ``ids`` and byte ``ends`` ([T] each)."""
    # A token of no bytes at the very start (a lone dummy prefix) ends at byte 0 and belongs to the first span.
    first = int(np.searchsorted(ends, span.begin, side="right")) if span.begin else 0
    scored, last = (int(np.searchsorted(ends, byte, side="right")) for byte in (span.scored, span.end))
    return Window(document, ids[first:last], ends[first:last], scored - first)
