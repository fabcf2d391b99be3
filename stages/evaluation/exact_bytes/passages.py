"""Pieces of held-out documents, cut by bytes alone: the same for every tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.evaluation.sections import SectionContext, Skipped
from stages.stage import StageError

if TYPE_CHECKING:
    from stages.evaluation.windows import Document


@dataclass(frozen=True)
class Passage:
    """A piece of a document. No model sees beyond it."""

    document: str
    domain: str
    text: str


def passages(documents: Sequence[Document], passage_bytes: int) -> list[Passage]:
    """All documents in pieces of at most ``passage_bytes``, in whole characters."""
    found = []
    for document in documents:
        data = document.text.encode()
        start = 0
        while start < len(data):
            end = min(start + passage_bytes, len(data))
            while end < len(data) and data[end] & 0xC0 == 0x80:
                end -= 1
            found.append(Passage(document.id, document.domain, data[start:end].decode()))
            start = end
    return found


def spelled_by_all(
    documents: Sequence[Document], context: SectionContext, section: str
) -> tuple[list[Document], list[Skipped]]:
    """The documents that every model's tokenizer spells, and a note of the others.

    Raises:
        StageError: there are none.
    """
    rows: dict[str, list[str]] = {}
    for row, changed in context.changed.items():
        for document in documents:
            if document.id in changed:
                rows.setdefault(document.id, []).append(row)
    kept = [document for document in documents if document.id not in rows]
    if not kept:
        raise StageError(f"{section}: data.eval has no document that the tokenizers of all models spell")
    return kept, [
        Skipped(f"document {name}", f"not spelled by the tokenizer of {', '.join(by)}") for name, by in rows.items()
    ]
