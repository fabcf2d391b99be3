"""Options of objectives that need no teacher."""

from __future__ import annotations

from stages.objectives.base import ObjectiveOptions


class CrossEntropyOptions(ObjectiveOptions):
    """Next-token cross-entropy of the student on the training text."""
