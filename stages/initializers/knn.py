"""Rows from the shared tokens nearest in a donor's space."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from stages.initializers.base import InitializerOptions, WantedInput


class KnnOptions(InitializerOptions):
    """A weighted sum of the rows of the k shared tokens nearest to the new one in the donor's space."""

    wanted_inputs: ClassVar[frozenset[WantedInput]] = frozenset({"donor"})

    method: Literal["knn"]
    k: int = Field(32, ge=1)
    """Neighbours; at most as many as there are shared tokens."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """What is near."""
    weights: Literal["barycentric", "least_squares", "distance"] = "barycentric"
    """``barycentric``: those that best rebuild the donor's row and sum to one; ``least_squares``: those that best
    rebuild it; ``distance``: 1 / distance, or the cosine, never negative."""
