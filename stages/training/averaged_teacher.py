"""A running average of the student as its teacher, and the backend that keeps the average in step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.training.backend import Backend
from stages.training.batch import Batch
from stages.training.models import ScoringModel, Signals
from stages.training.teacher import Teacher

_FILE = "averaged_teacher.pt"


class AveragedTeacher:
    """Scores with the exponential moving average of the student's weights; a ``Teacher``.

    After every step, ``average = decay * average + (1 - decay) * student``; it begins as the student (Tarvainen and
    Valpola, arXiv 1703.01780). Kept in float32: what one step adds is lost in the rounding of bf16.

    Args:
        scoring: a model of the student's architecture with the student's initial weights, frozen.
        student: in training; every process has all of its weights.
        decay: share of the average that a step keeps.
    """

    def __init__(self, scoring: ScoringModel, student: ScoringModel, decay: float) -> None:
        self._scoring = scoring
        self._decay = decay
        self._published = [parameter.detach() for parameter in scoring.model.parameters()]
        # Not their tensors: DeepSpeed moves these to memory of its own.
        self._student = list(student.model.parameters())
        self._average = [each if each.dtype == torch.float32 else each.float() for each in self._published]

    @property
    def network(self) -> nn.Module:
        """The model that scores."""
        return self._scoring.model

    def score(self, batch: Batch) -> Signals:
        return self._scoring.score(batch.teacher)

    def follow(self) -> None:
        """Take the student's weights into the average: once after every step."""
        student = [parameter.detach().float() for parameter in self._student]
        torch._foreach_lerp_(self._average, student, 1 - self._decay)
        torch._foreach_copy_(self._published, self._average)

    def save(self, directory: Path) -> None:
        """Write the average into a checkpoint; it is the same in every process."""
        torch.save(self._average, directory / _FILE)

    def load(self, directory: Path) -> None:
        """Restore what ``save`` wrote."""
        # On the CPU: where each tensor was is the device of the process that saved it.
        saved = torch.load(directory / _FILE, weights_only=True, mmap=True, map_location="cpu")
        torch._foreach_copy_(self._average, saved)
        torch._foreach_copy_(self._published, self._average)


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
            follower.follow()
        return norm

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
