"""Rows copied from old tokens that occur among the same neighbours."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from stages.initializers.base import InitializerOptions, WantedInput


class TokAlignOptions(InitializerOptions):
    """The row of the old token that co-occurs with the shared tokens most like the new one (TokAlign)."""

    wanted_inputs: ClassVar[frozenset[WantedInput]] = frozenset({"documents"})

    method: Literal["tokalign"]
    dimensions: int = Field(300, ge=1)
    """Of the co-occurrence vectors; fewer where the text has fewer different tokens."""
    window: int = Field(15, ge=1)
    """Tokens to either side that count as neighbours; one at distance d counts 1/d."""
    min_count: int = Field(5, ge=1)
    """Tokens that the text has less often get no vector: they are neither made nor copied."""
    pivots: int = Field(300, ge=1)
    """Shared tokens to which the others are compared, the most frequent ones."""
