"""Options of objectives whose targets are exact in bytes."""

from __future__ import annotations

from pydantic import Field

from stages.objectives.base import ObjectiveOptions


class BpmOptions(ObjectiveOptions):
    """Byte-prefix marginalisation (arXiv 2607.22334): KL to the teacher's mass on every student token."""

    whitespace_rows: bool = False
    """Learn also at student tokens of spaces and tabs alone, whose exact targets taught models wrong indents."""


class EscdOptions(ObjectiveOptions):
    """Event-set completion (arXiv 2609.34738): KL at common boundaries, and completion of what the student began."""

    child_weight: float = Field(1.0, ge=0)
    """Factor of the completion term."""
    min_mass: float = Field(1e-4, gt=0, lt=1)
    """Least probability of a teacher token for the student to be taught its completion."""
    whitespace_rows: bool = False
    """Learn also at student tokens of spaces and tabs alone, as the paper does."""
