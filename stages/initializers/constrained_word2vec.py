"""Rows trained on text without leaving the convex hull of the old ones."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from stages.initializers.base import InitializerOptions, WantedInput


class CW2VOptions(InitializerOptions):
    """Convex combinations of all old rows, learnt by skip-gram with negative sampling (Constrained Word2Vec).

    The defaults are the paper's and want a GPU: on a CPU a step at ``rank: 1024`` takes minutes for a real vocabulary,
    so try ``rank: 64, batch_pairs: 256, max_steps: 500`` first.
    """

    wanted_inputs: ClassVar[frozenset[WantedInput]] = frozenset({"documents"})

    method: Literal["cw2v"]
    rank: int = Field(1024, ge=1)
    """Inner dimension of the factorised weights."""
    window: int = Field(5, ge=1)
    """Tokens to either side that a token is to predict."""
    negatives: int = Field(5, ge=1)
    """Tokens drawn against each predicted one, in proportion to their count to the power of 0.75."""
    epochs: int = Field(5, ge=1)
    """Passes over the training documents."""
    batch_pairs: int = Field(4096, ge=1)
    """Pairs of a token and its neighbour a step, about."""
    learning_rate: float = Field(3e-4, gt=0)
    """Of Adam."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many steps, if the epochs have more."""
