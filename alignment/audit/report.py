"""The preflight audit's report as plain values: what ``pipeline audit`` prints, plots and writes as JSON.

Units are those of ``alignment.audit.measurements``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from alignment.audit.measurements import (
    BoundaryFacts,
    ChunkFacts,
    ContextFacts,
    DigitFacts,
    InexactDocument,
    LongSpan,
    Measurements,
    Rejections,
    SuppressedKind,
    SuppressedToken,
    Suppression,
    TokenizerFacts,
    TokenUse,
    VocabularyFacts,
)
from alignment.audit.text_slice import TextSlice

__all__ = [
    "SCHEMA_VERSION",
    "AuditReport",
    "BoundaryFacts",
    "ChunkFacts",
    "ContextFacts",
    "Cost",
    "DigitFacts",
    "Finding",
    "InexactDocument",
    "Level",
    "LongSpan",
    "Measurements",
    "ModelCost",
    "ObjectiveAdvice",
    "Recommendation",
    "Rejections",
    "SuppressedKind",
    "SuppressedToken",
    "Suppression",
    "TextSlice",
    "TokenUse",
    "TokenizerFacts",
    "Verdict",
    "VocabularyFacts",
]

SCHEMA_VERSION = 1

Level = Literal["ok", "note", "warning"]
Verdict = Literal["recommended", "possible", "avoid"]


@dataclass(frozen=True)
class ObjectiveAdvice:
    """What the numbers say about one family of objectives."""

    objective: str
    verdict: Verdict
    reason: str
    """One sentence with the number that decided."""
    source: str
    """Where the rule comes from."""


@dataclass(frozen=True)
class Finding:
    """Something to know before training."""

    level: Level
    topic: str
    """A word or two: ``digits``, ``coverage``, ``gamma``."""
    message: str
    """What was found, with its number, and what to do."""
    source: str
    """Where the rule comes from."""


@dataclass(frozen=True)
class Recommendation:
    """The recommended objective, a verdict on every other, and findings, warnings first."""

    objective: str
    objectives: tuple[ObjectiveAdvice, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class ModelCost:
    """One model's part of the cost. Formulas: ``alignment.audit.cost``."""

    parameters: int
    """Body and embeddings, estimated from the configuration."""
    flops_per_token: float
    """One forward pass."""
    flops_per_byte: float
    """All the passes that a byte of text takes in training."""
    tokens: float
    """Tokens in one epoch of the data."""
    logits_bytes: float
    """A batch's logits [B, T, V] in float32, were they materialised."""
    fused_head_bytes: float
    """The largest block of logits that the fused head holds at a time."""
    state_bytes: float
    """Weights, and for the student gradients and optimiser state."""


@dataclass(frozen=True)
class Cost:
    """Estimated cost of one epoch over the audited data, from configuration facts alone."""

    teacher: ModelCost | None
    student: ModelCost | None
    flops: float | None
    """Teacher and student together, one epoch."""
    score_cache_bytes: float
    """Caching the teacher's scores of one epoch's documents, each once: two float32 a token."""
    assumptions: str
    """In a sentence."""


@dataclass(frozen=True)
class AuditReport(Measurements):
    """Everything the audit found: the measurements, what follows from them, and the cost."""

    recommendation: Recommendation
    cost: Cost | None
    """None where no configuration was given."""

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, fields named as here, with ``schema_version``."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}
