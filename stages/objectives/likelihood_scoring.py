"""Options of cross-tokenizer likelihood scoring."""

from __future__ import annotations

from stages.objectives.base import ObjectiveOptions


class LikelihoodScoringOptions(ObjectiveOptions):
    """The teacher's next-token distribution in a student vocabulary that lies inside its own (arXiv 2512.14954)."""
