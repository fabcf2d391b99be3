"""What every model is scored on: documents, cut into the same byte windows for all tokenizers.

A tokenizer can only be cut where one of its tokens ends, and two tokenizers only where tokens of both end. Cutting
and starting to score at boundaries common to all tokenizations gives every model exactly the same bytes to predict
after exactly the same bytes of context, so the sums of nats compare. Boundaries inside characters are not used: the
context and the scored part of every window are text, which ensembles and byte models can be asked for as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Document:
    """One held-out text; its domain names the column it counts in."""

    id: str
    domain: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """One held-out conversation; ``tools`` are those that its messages may call."""

    id: str
    domain: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


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
        context_begin: first byte of the span, whose bytes up to ``begin`` are context.
    """

    document: int
    ids: np.ndarray
    ends: np.ndarray
    first_scored: int
    context_begin: int

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


def read_documents(path: Path, max_documents: int | None) -> tuple[list[Document], list[Conversation]]:
    """The texts and the conversations of a documents artifact, domains together; the first ``max_documents`` of each
    domain."""
    with (path / "documents.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    domains = list(dict.fromkeys(record["domain"] for record in records))
    records.sort(key=lambda record: domains.index(record["domain"]))
    kept = [
        record
        for _, group in groupby(records, key=lambda record: record["domain"])
        for record in list(group)[:max_documents]
    ]
    documents = [Document(record["id"], record["domain"], record["text"]) for record in kept if "text" in record]
    conversations = [
        Conversation(record["id"], record["domain"], record["messages"], record.get("tools"))
        for record in kept
        if "text" not in record
    ]
    return documents, conversations


def common_boundaries(ends: Sequence[np.ndarray]) -> np.ndarray:
    """Byte positions after the first byte where tokens of every tokenization end, ascending, int64 [C]."""
    common = reduce(np.intersect1d, ends)
    return common[common > 0]


def shared_ends(text: str, ends: Sequence[np.ndarray]) -> np.ndarray:
    """``common_boundaries`` of the tokenizations of ``text`` between whole characters, so that what lies between two of
    them is text again."""
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    begins_character = np.append(data & 0xC0 != 0x80, True)
    common = common_boundaries(ends)
    return common[begins_character[common]]


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
    return Window(document, ids[first:last], ends[first:last], scored - first, span.begin)
