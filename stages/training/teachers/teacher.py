"""Where a training step's teacher signals come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from stages.training.data.batch import Batch
from stages.training.models import ScoringModel, Signals


class Teacher(Protocol):
    """What the engine asks of a teacher, be it a model at hand or scores from a file."""

    @property
    def network(self) -> nn.Module | None:
        """The causal language model that runs when it scores; None if none does."""

    def score(self, batch: Batch) -> Signals:
        """What the teacher tells about its side of a micro-batch, without gradients."""


@dataclass(frozen=True)
class OnlineTeacher:
    """A frozen model that scores every micro-batch as it comes."""

    model: ScoringModel

    @property
    def network(self) -> nn.Module:
        return self.model.model

    def score(self, batch: Batch) -> Signals:
        return self.model.score(batch.teacher)
