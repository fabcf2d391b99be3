"""Where a training step's teacher signals come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from stages.training.batch import Batch
from stages.training.models import ScoringModel, Signals


class Teacher(Protocol):
    """What the engine asks of a teacher, be it a model at hand or scores from a file."""

    def score(self, batch: Batch) -> Signals:
        """What the teacher tells about its side of a micro-batch, without gradients."""


@dataclass(frozen=True)
class OnlineTeacher:
    """A frozen model that scores every micro-batch as it comes."""

    model: ScoringModel

    def score(self, batch: Batch) -> Signals:
        return self.model.score(batch.teacher)
