"""What of the training data was read and trained on: sums over documents that stay the same however work is shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NAMED_DOCUMENTS = 5
"""How many documents are named of those that something is said about."""


@dataclass(frozen=True)
class DocumentFacts:
    """What there is to count of one document.

    Attributes:
        id, domain: of the document.
        sizes: name -> number, to be summed over documents.
        rewritten: the sides (``teacher``, ``student``) whose tokenizer does not reproduce it.
    """

    id: str
    domain: str
    sizes: Mapping[str, int]
    rewritten: tuple[str, ...] = ()


@dataclass
class Account:
    """Sums over all documents that were read, each once, and over the windows that training took.

    Attributes:
        documents: how many were read.
        sizes: their summed ``DocumentFacts.sizes``.
        rewritten: side -> how many documents its tokenizer does not reproduce.
        first_rewritten: side -> ids of the first of them.
        drawn: domain -> ``documents``, ``windows`` and ``bytes`` (of the student's tokens) that training took, repeated
            readings included; of a document with n windows each is the n-th part.
    """

    documents: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    rewritten: Counter[str] = field(default_factory=Counter)
    first_rewritten: dict[str, list[str]] = field(default_factory=dict)
    drawn: dict[str, dict[str, float]] = field(default_factory=dict)

    def read(self, facts: DocumentFacts) -> None:
        """Add a document that was not read before."""
        self.documents += 1
        self.sizes.update(facts.sizes)
        for side in facts.rewritten:
            self.rewritten[side] += 1
            first = self.first_rewritten.setdefault(side, [])
            if len(first) < NAMED_DOCUMENTS:
                first.append(facts.id)

    def draw(self, domain: str, size: int, windows: int) -> None:
        """Add a window of ``size`` bytes that training took, of a document that has ``windows``."""
        drawn = self.drawn.setdefault(domain, {"documents": 0.0, "windows": 0, "bytes": 0})
        drawn["documents"] += 1 / windows
        drawn["windows"] += 1
        drawn["bytes"] += size

    def mixture(self) -> dict[str, dict[str, float]]:
        """``drawn``, rounded for a person."""
        return {domain: drawn | {"documents": round(drawn["documents"], 2)} for domain, drawn in self.drawn.items()}

    def state(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "documents": self.documents,
            "sizes": dict(self.sizes),
            "rewritten": dict(self.rewritten),
            "first_rewritten": {side: list(first) for side, first in self.first_rewritten.items()},
            "drawn": {domain: dict(counts) for domain, counts in self.drawn.items()},
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Account:
        """What ``state`` gave."""
        return cls(
            documents=state["documents"],
            sizes=Counter(state["sizes"]),
            rewritten=Counter(state["rewritten"]),
            first_rewritten={side: list(first) for side, first in state["first_rewritten"].items()},
            drawn={domain: dict(counts) for domain, counts in state["drawn"].items()},
        )
