"""What the options of every objective have in common."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from stages.objectives.capabilities import Need
from stages.stage import StageConfig

WeightSchedule = Literal["constant", "linear", "cosine", "reverse_cosine"]


class ObjectiveOptions(StageConfig):
    """Weight of a term of the training loss."""

    weight: float = Field(1.0, gt=0)
    """Factor of the mean over the objective's units (tokens, chunks, positions)."""
    weight_schedule: WeightSchedule = "constant"
    """How the weight moves over the steps: ``linear`` and ``reverse_cosine`` up from 0, ``cosine`` down to 0."""

    @property
    def needs(self) -> Need | None:
        """What these options ask of the teacher where that is more than the capability table says, else None."""
        return None

    @property
    def reaches_head_input(self) -> bool:
        """Whether its gradient reaches the final hidden states, where balancing compares the losses."""
        return True

    @property
    def trains_projector(self) -> bool:
        """Whether the objective trains a projection between the two models' hidden states."""
        return False


def schedule_factor(schedule: WeightSchedule, step: int, steps: int) -> float:
    """Share of the weight that counts at optimiser step ``step`` (from 0) of ``steps``; a term never starts at 0."""
    done = (step + 1) / steps
    if schedule == "linear":
        return done
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / steps))
    if schedule == "reverse_cosine":
        return 0.5 * (1 - math.cos(math.pi * done))
    return 1.0
