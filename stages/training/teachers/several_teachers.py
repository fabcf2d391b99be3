"""Several teachers, each with its own tokenizer: which of them a document is cut into windows for.

A window belongs to one teacher, and holds the student's tokens as that teacher's tokenizer aligns with them. A document
that several teachers teach makes windows for each, so the student reads it once for every teacher.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stages.stage import StageError
from stages.training.data.account import Account, DocumentFacts
from stages.training.data.aligner import DocumentAligner
from stages.training.data.blocks import DocumentWindows
from stages.training.data.windows import Document, Window
from stages.training.teachers.teacher_options import TeacherChoice, TeacherEntry


@dataclass
class TeacherAligners:
    """Cuts documents into windows for the teachers that teach them (a ``WindowMaker``).

    Attributes:
        entries: the teachers, by ``Window.teacher_number``.
        aligners: of the same teachers.
        choice: ``sum``: every teacher that may teach a document does; ``best``: of these the one that gives its text
            the fewest nats a byte, which only scores that were computed before tell.
    """

    entries: Sequence[TeacherEntry]
    aligners: Sequence[DocumentAligner]
    choice: TeacherChoice

    def prepare(self) -> None:
        """Load all tokenizers."""
        for aligner in self.aligners:
            aligner.prepare()

    def make(self, document: Document, number: int, epoch: int, done: float = 0.0) -> DocumentWindows:
        """The windows of one document for each teacher that teaches it.

        Raises:
            StageError: no teacher teaches it, or one cannot.
        """
        numbers = [
            index
            for index, entry in enumerate(self.entries)
            if entry.teaches is None or document.route in entry.teaches
        ]
        if not numbers:
            raise StageError(
                f"document {document.id} has the route {document.route!r}, which no teacher teaches: "
                f"{'; '.join(_in_words(entry) for entry in self.entries)}. Add it to one of them, or remove the text"
            )
        made = {index: self.aligners[index].make(document, number, epoch, done) for index in numbers}
        if self.choice == "best" and len(made) > 1:
            best = min(made, key=lambda index: (self._nats_per_byte(index, made[index].windows), index))
            made = {best: made[best]}
        windows = [replace(window, teacher_number=index) for index, each in made.items() for window in each.windows]
        return DocumentWindows(windows, self._facts(document, made))

    def _nats_per_byte(self, number: int, windows: Sequence[Window]) -> float:
        """What the teacher thinks of the text of its windows; infinite where it has no score."""
        scores = self.aligners[number].scores
        nats, size = 0.0, 0
        for window in windows:
            side = window.teacher
            scored = np.flatnonzero(side.chunk >= 0)
            label_logp = scores.store.read("label_logp", side.first_entry + scored)
            known = ~np.isnan(label_logp)
            nats -= float(label_logp[known].sum(dtype=np.float64))
            size += int(side.lengths[scored][known].sum())
        return nats / size if size else math.inf

    def _facts(self, document: Document, made: dict[int, DocumentWindows]) -> DocumentFacts:
        sizes = Counter[str]()
        rewritten = []
        for number, each in made.items():
            name = self.entries[number].name
            sizes[f"{name}/documents"] = 1
            sizes.update({f"{name}/{size}": count for size, count in each.facts.sizes.items()})
            rewritten += [f"{name}/{side}" for side in each.facts.rewritten]
        return DocumentFacts(document.id, document.domain, sizes, tuple(rewritten))

    def describe(self, account: Account) -> dict[str, Any]:
        """What each teacher's aligner says of the documents that it teaches, by the teacher's name."""
        described = {
            entry.name: aligner.describe(_share(account, entry.name))
            for entry, aligner in zip(self.entries, self.aligners, strict=True)
        }
        warnings = [f"{name}: {line}" for name, each in described.items() for line in each.pop("warnings")]
        return {"documents": account.documents, "teachers": described, "warnings": warnings}


def _share(account: Account, name: str) -> Account:
    """What an account says of one teacher."""
    prefix = f"{name}/"

    def own(counts: dict[str, Any]) -> dict[str, Any]:
        return {key.removeprefix(prefix): value for key, value in counts.items() if key.startswith(prefix)}

    sizes = Counter(own(account.sizes))
    return Account(
        documents=sizes.pop("documents", 0),
        sizes=sizes,
        rewritten=Counter(own(account.rewritten)),
        first_rewritten=own(account.first_rewritten),
    )


def _in_words(entry: TeacherEntry) -> str:
    return f"{entry.name} teaches {'everything' if entry.teaches is None else ', '.join(entry.teaches)}"
