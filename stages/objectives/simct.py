"""Options of SimCT."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.objectives.base import ObjectiveOptions


class SimCtOptions(ObjectiveOptions):
    """Preferences among the shared tokens and the text that follows (arXiv 2605.07711)."""

    divergence: Literal["reverse_kl", "kl", "jeffreys", "jsd", "tvd"] = "reverse_kl"
    """Divergence between the teacher's and the student's preferences; ``jsd`` weights both alike."""
    temperature: float = Field(1.0, gt=0)
    """Scores are divided by it before the softmax over candidates."""
