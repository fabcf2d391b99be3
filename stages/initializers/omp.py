"""Rows as sparse combinations of shared tokens, found in a donor's space."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from stages.initializers.base import InitializerOptions, WantedInput
from stages.stage import not_keyed


class OmpOptions(InitializerOptions):
    """Orthogonal matching pursuit (Goddard & Fernandes Neto, arXiv 2506.06607)."""

    method: Literal["omp"]
    wanted_inputs: ClassVar[frozenset[WantedInput]] = frozenset({"donor"})

    k: int = Field(64, ge=1)
    """Shared tokens that one new row is made of at most. More than the donor is wide add nothing."""
    select: Literal["raw", "cosine"] = "raw"
    """How the next shared token is chosen: by its inner product with what is left, or by the cosine, which does not
    favour long rows."""
    centre: bool = False
    """Work on rows less the mean of the shared tokens' rows, in both models."""
    ridge: float = Field(0.0, ge=0)
    """Added to the diagonal of the last least-squares problem; keeps coefficients small."""
    stop_tol: float = Field(1e-6, ge=0, lt=1)
    """A row is done when so small a share of the donor's row is left."""
    memory_gib: float = not_keyed(4.0, gt=0)
    """What may be allocated beyond the matrices. Decides the speed, not the result."""
