"""One optimiser step over a global batch: teacher, statistics, losses, balance, gradient, update.

Every number that leaves this module is a sum over all micro-batches and processes divided by another such sum, so
neither the split of the batch nor the number of processes shows in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from losses.balance import gradmag_weights
from losses.output import LossOutput
from stages.stage import StageError
from stages.training.backend import Backend
from stages.training.data import Batch
from stages.training.models import ScoringModel, Signals
from stages.training.objectives import Objective


class Stepper:
    """Takes optimiser steps.

    Args:
        backend: holds the student and its optimiser.
        objectives: the terms of the loss.
        teacher: scores the teacher's side of every batch; None when no objective asks for it.
        balanced: weigh the losses so that their gradients at the head's input have equal norms (GradMag). A step uses
            the norms of the step before, so the weights are the same for all its micro-batches and processes; the
            first step measures them in a forward pass of its own.
    """

    def __init__(
        self, backend: Backend, objectives: Sequence[Objective], teacher: ScoringModel | None, balanced: bool
    ) -> None:
        self._backend = backend
        self._objectives = objectives
        self._teacher = teacher
        self._balanced = balanced
        self._squared_norms: Tensor | None = None

    def take(self, batches: Sequence[Batch], number: int) -> dict[str, float]:
        """Take step ``number`` (from 0) on this process's micro-batches; returns what there is to log.

        Raises:
            StageError: an objective has nothing to compare in the whole batch, or the gradient is not finite.
        """
        teachers = [self._teach(batch) for batch in batches]
        statistics = self._global_statistics(batches, teachers)
        weights = self._weights(batches, teachers, statistics)
        sums = _Sums(weights.device)
        for index, (batch, teacher) in enumerate(zip(batches, teachers, strict=True)):
            student = self._backend.forward(batch.student)
            outputs = self._outputs(batch, teacher, student, statistics)
            losses = _shares(outputs, statistics)
            sums.add("losses", torch.stack(losses))
            sums.add("tokens", batch.student.attention.sum())
            for objective, output in zip(self._objectives, outputs, strict=True):
                for name, pair in output.metrics.items():
                    sums.add(f"{objective.name}.{name}", pair)
            if self._balanced:
                sums.add("squares", _squared_head_gradients(losses, student))
            combined = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
            self._backend.backward(combined, last=index == len(batches) - 1)
        norm = self._backend.step(number)
        totals = sums.reduce(self._backend)
        if self._balanced:
            self._squared_norms = totals.pop("squares")
        return self._values(totals, weights) | {"gradient_norm": norm}

    def state(self) -> list[float] | None:
        """What a checkpoint must hold beside the backend's own: the gradient norms that set the next weights."""
        return None if self._squared_norms is None else self._squared_norms.tolist()

    def restore(self, state: list[float] | None, device: torch.device) -> None:
        """Continue from what ``state`` gave."""
        self._squared_norms = None if state is None else torch.tensor(state, dtype=torch.float64, device=device)

    def _teach(self, batch: Batch) -> Signals | None:
        if self._teacher is None or batch.teacher is None:
            return None
        with torch.no_grad():
            return self._teacher(batch.teacher)

    def _global_statistics(self, batches: Sequence[Batch], teachers: Sequence[Signals | None]) -> list[Tensor]:
        local = [
            sum(objective.statistics(batch, teacher) for batch, teacher in zip(batches, teachers, strict=True))
            for objective in self._objectives
        ]
        summed = self._backend.sum(torch.cat(local)).split([len(part) for part in local])
        for objective, part in zip(self._objectives, summed, strict=True):
            if part[0] == 0:
                raise StageError(f"loss {objective.name}: a whole batch has no unit to compare; raise batch_windows")
        return list(summed)

    def _outputs(
        self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Sequence[Tensor]
    ) -> list[LossOutput]:
        return [
            objective.loss(batch, teacher, student, part)
            for objective, part in zip(self._objectives, statistics, strict=True)
        ]

    def _weights(
        self, batches: Sequence[Batch], teachers: Sequence[Signals | None], statistics: list[Tensor]
    ) -> Tensor:
        if not self._balanced:
            return statistics[0].new_tensor([objective.weight for objective in self._objectives]).float()
        if self._squared_norms is None:
            sums = _Sums(statistics[0].device)
            for batch, teacher in zip(batches, teachers, strict=True):
                student = self._backend.forward(batch.student)
                losses = _shares(self._outputs(batch, teacher, student, statistics), statistics)
                sums.add("squares", _squared_head_gradients(losses, student))
            self._squared_norms = sums.reduce(self._backend)["squares"]
        return gradmag_weights(self._squared_norms).float()

    def _values(self, totals: dict[str, Tensor], weights: Tensor) -> dict[str, float]:
        losses = totals.pop("losses")
        values = {"tokens": float(totals.pop("tokens")), "loss": float((weights * losses).sum())}
        for objective, loss, weight in zip(self._objectives, losses, weights, strict=True):
            values[objective.name] = float(loss)
            if self._balanced:
                values[f"{objective.name}.weight"] = float(weight)
        return values | {name: float(numerator / denominator) for name, (numerator, denominator) in totals.items()}


class _Sums:
    """Named float64 sums that one collective call adds up over all processes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().to(self._device, torch.float64)
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def reduce(self, backend: Backend) -> dict[str, Tensor]:
        flat = backend.sum(torch.cat([value.flatten() for value in self._sums.values()]))
        parts = flat.split([value.numel() for value in self._sums.values()])
        return {name: part.view(value.shape) for (name, value), part in zip(self._sums.items(), parts, strict=True)}


def _shares(outputs: Sequence[LossOutput], statistics: Sequence[Tensor]) -> list[Tensor]:
    """This micro-batch's share of every loss: its total over the global number of units."""
    return [output.total / part[0].float() for output, part in zip(outputs, statistics, strict=True)]


def _squared_head_gradients(losses: Sequence[Tensor], student: Signals) -> Tensor:
    """Squared norm of each loss's gradient at the head's input: float64 [number of losses]."""
    gradients = [torch.autograd.grad(loss, student.hidden, retain_graph=True)[0] for loss in losses]
    return torch.stack([gradient.double().square().sum() for gradient in gradients])
