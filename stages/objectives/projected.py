"""Options of objectives that map one vocabulary onto the other: X-Token, MinED, CDM."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.objectives.base import ObjectiveOptions
from stages.objectives.capabilities import Need


class XTokenOptions(ObjectiveOptions):
    """The student's distribution projected onto the teacher's vocabulary (X-Token, arXiv 2605.21699).

    The paper adds cross-entropy and scales this to its size; here list ``cross_entropy`` beside it.
    """

    variant: Literal["p_kl", "h_kl"] = "p_kl"
    """``p_kl`` compares the projected distributions, which the paper prefers where the tokenizers differ much (numbers
    cut differently); ``h_kl`` the common tokens one by one and the sorted probabilities of all others, which it prefers
    where they differ little. ``h_kl`` needs the teacher's whole distribution."""
    top_k: int = Field(8192, ge=1)
    """Teacher tokens of a position that are compared one by one, the others as one; for ``h_kl``, the tokens outside
    the common vocabulary whose sorted probabilities are compared."""
    chunks: Literal["chain_rule", "one_to_one"] = "chain_rule"
    """``chain_rule`` compares at the start of every chunk, and the whole chunk's probability; ``one_to_one`` only where
    a chunk is one token on either side."""

    @property
    def needs(self) -> Need | None:
        return "distribution" if self.variant == "h_kl" else None


class MinEdOptions(ObjectiveOptions):
    """Each student token takes the probability of the teacher token spelled most like it (MinED, arXiv 2401.10491).

    Only chunks of one token on either side are compared; list ``cross_entropy`` beside it for the others.
    """

    temperature: float = Field(2.0, gt=0)
    """Log-probabilities of both sides are divided by it."""


class CdmOptions(ObjectiveOptions):
    """Top tokens of both models matched in context (CDM, arXiv 2502.11104)."""

    top_k: int = Field(100, ge=1)
    """Most probable tokens of either model that are matched."""
    max_distance: float = Field(0.3, ge=0, lt=1)
    """Tokens are spelled alike if their edit distance is below this share of their bytes together; 0 matches only
    tokens with equal bytes."""
    candidates: int = Field(16, ge=1)
    """Tokens spelled alike that are kept for each token, the nearest ones."""
    temperature: float = Field(1.0, gt=0)
    """Log-probabilities of both sides are divided by it."""
    chunks: Literal["all", "one_to_one"] = "all"
    """Compare at the start of every chunk, or only of those of one token on either side."""
