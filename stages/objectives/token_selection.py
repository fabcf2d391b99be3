"""Options of cross-entropy on selected chunks."""

from __future__ import annotations

from pydantic import Field

from stages.objectives.base import ObjectiveOptions


class SelectedCrossEntropyOptions(ObjectiveOptions):
    """Cross-entropy of the chunks of each window on which the student beats its teacher by most (arXiv 2510.18250)."""

    keep: float = Field(0.6, gt=0, le=1)
    """Share of a window's chunks that is learned, rounded up; the paper's 0.6. Which ones may change with every
    step."""
