"""Text that training cannot use: outside every chunk, or rewritten by a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from alignment.audit.batch import BatchChunks, SideTokens
from alignment.audit.longest import excerpt
from alignment.audit.measurements import InexactDocument, Rejections
from alignment.audit.slices import DECIMALS
from alignment.audit.text_classes import ClassifiedText
from alignment.audit.text_slice import TextSlice

SIDES: tuple[Literal["teacher", "student"], ...] = ("teacher", "student")
EXAMPLES = 5
"""Inexact documents shown for either side."""


class UnusableText:
    """Counts documents and bytes that do not reach training, and keeps the first inexact documents."""

    def __init__(self) -> None:
        self._documents = 0
        self._inexact_documents = dict.fromkeys(SIDES, 0)
        self._inexact_bytes = dict.fromkeys(SIDES, 0.0)
        self._examples: dict[str, list[InexactDocument]] = {side: [] for side in SIDES}

    def add(
        self,
        text: ClassifiedText,
        sides: Sequence[SideTokens],
        chunks: BatchChunks,
        *,
        domain: str,
        weight: float,
        first_document: int,
    ) -> None:
        """Count a batch; ``sides`` are teacher and student, ``first_document`` numbers its first document."""
        sizes = np.diff(text.starts)
        covered = np.bincount(chunks.document, chunks.ends - chunks.starts, minlength=len(sizes))
        self._documents += int((covered < sizes).sum())
        for name, side in zip(SIDES, sides, strict=True):
            spelled = np.bincount(side.document, np.where(side.verbatim, side.lengths, 0), minlength=len(sizes))
            wrong = sizes - spelled.astype(np.int64)
            self._inexact_documents[name] += int((wrong > 0).sum())
            self._inexact_bytes[name] += weight * float(wrong.sum())
            room = EXAMPLES - len(self._examples[name])
            for document in np.flatnonzero(wrong)[:room].tolist():
                start = _first_wrong_byte(text, side, document)
                example = InexactDocument(
                    domain=domain,
                    document=first_document + document,
                    side=name,
                    offset=start - int(text.starts[document]),
                    bytes=int(wrong[document]),
                    text=excerpt(text.text[start : text.starts[document + 1]].tobytes()),
                )
                self._examples[name].append(example)

    def report(self, overall: TextSlice) -> Rejections:
        """What was found in the whole text."""
        lost = None if overall.coverage is None else 1 - overall.coverage
        # Both factors are quotients or sums of fractions: beyond these decimals there is only rounding error.
        return Rejections(
            bytes=round(overall.bytes * (lost or 0.0), DECIMALS),
            share=lost,
            documents=self._documents,
            teacher_inexact_documents=self._inexact_documents["teacher"],
            student_inexact_documents=self._inexact_documents["student"],
            teacher_inexact_bytes=self._inexact_bytes["teacher"],
            student_inexact_bytes=self._inexact_bytes["student"],
            examples=tuple(example for side in SIDES for example in self._examples[side]),
        )


def _first_wrong_byte(text: ClassifiedText, side: SideTokens, document: int) -> int:
    """Where the first token that is not verbatim starts, or the tokens end before the text does."""
    mine = side.document == document
    wrong = side.starts[mine & ~side.verbatim]
    return int(wrong[0] if len(wrong) else side.ends[mine].max(initial=text.starts[document]))
