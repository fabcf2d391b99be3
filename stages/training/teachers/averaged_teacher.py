"""A running average of the student as its teacher, and the backend that keeps the average in step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.training.backends.backend import Backend
from stages.training.data.batch import Batch
from stages.training.models import ScoringModel, Signals
from stages.training.teachers.teacher import Teacher

_FILE = "averaged_teacher.pt"

_NOTES_BYTES = 1024
"""More than ``torch.save`` writes of one tensor beside its values."""


class AveragedTeacher:
    """Scores with the exponential moving average of the student's weights; a ``Teacher``.

    After every step, ``average = decay * average + (1 - decay) * student``; it begins as the student (Tarvainen and
    Valpola, arXiv 1703.01780). Both are float32: the average of what trains, and the optimiser's master weights that
    are averaged. In bf16 neither a step of the student nor ``1 - decay`` of it would be more than the rounding, and the
    average would stand still. The model that scores has the average rounded to the student's compute type.

    Args:
        scoring: a model of the student's architecture with the student's initial weights, frozen.
        trained: names of the student's parameters that train, as the backend's ``masters`` gives them; the others stay
            what they are.
        decay: share of the average that a step keeps.
    """

    def __init__(self, scoring: ScoringModel, trained: Collection[str], decay: float) -> None:
        self._scoring = scoring
        self._decay = decay
        self._published = {name: p.detach() for name, p in scoring.named_parameters() if name in trained}
        # A float32 model's weights are the average itself.
        self._average = {name: value.float() for name, value in self._published.items()}

    @property
    def network(self) -> nn.Module:
        """The model that scores."""
        return self._scoring.model

    def score(self, batch: Batch) -> Signals:
        return self._scoring.score(batch.teacher)

    def follow(self, masters: Iterable[tuple[str, Tensor]]) -> None:
        """Take the student's weights into the average: once after every step.

        Args:
            masters: name and float32 value of everything that trains, objectives' own parameters included.
        """
        for name, master in masters:
            if name in self._average:
                self._average[name].lerp_(master, 1 - self._decay)
                self._published[name].copy_(self._average[name])

    def saved_bytes(self) -> int:
        """What ``save`` takes on disk; never too few."""
        return sum(average.nbytes + _NOTES_BYTES for average in self._average.values())

    def save(self, directory: Path) -> None:
        """Write the average into a checkpoint; it is the same in every process."""
        torch.save(self._average, directory / _FILE)

    def load(self, directory: Path) -> None:
        """Restore what ``save`` wrote."""
        # On the CPU: where each tensor was is the device of the process that saved it.
        saved = torch.load(directory / _FILE, weights_only=True, mmap=True, map_location="cpu")
        for name, average in self._average.items():
            self._published[name].copy_(average.copy_(saved[name]))


def followed(backend: Backend, teachers: Sequence[Teacher], *, saves: bool) -> Backend:
    """The backend, with its steps and checkpoints followed by those of the teachers that average the student.

    Args:
        backend: trains the student.
        teachers: of the stage.
        saves: this process writes the averages, which are the same in every process.
    """
    followers = [teacher for teacher in teachers if isinstance(teacher, AveragedTeacher)]
    return _FollowedBackend(backend, followers, saves) if followers else backend


class _FollowedBackend:
    """A backend that averaged teachers follow; in all else the backend itself."""

    def __init__(self, backend: Backend, followers: Sequence[AveragedTeacher], saves: bool) -> None:
        self._backend = backend
        self._followers = followers
        self._saves = saves

    def step(self, number: int) -> Any:
        norm = self._backend.step(number)
        for follower in self._followers:
            follower.follow(self._backend.masters())
        return norm

    def saved_bytes(self) -> int:
        return self._backend.saved_bytes() + sum(follower.saved_bytes() for follower in self._followers)

    def save(self, directory: Path) -> None:
        if self._saves:
            for follower in self._followers:
                follower.save(directory)
        self._backend.save(directory)

    def load(self, directory: Path) -> None:
        self._backend.load(directory)
        for follower in self._followers:
            follower.load(directory)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)
