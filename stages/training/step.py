"""One optimiser step over a global batch: teacher, statistics, losses, balance, gradient, update.

Every number that leaves this module is a sum over all micro-batches and processes divided by another such sum, so
neither the split of the batch nor the number of processes shows in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from losses.balance import Balancer
from losses.output import LossOutput
from stages.stage import StageError
from stages.training.backend import Backend
from stages.training.batch import Batch
from stages.training.models import Pass, Signals
from stages.training.objectives import Term
from stages.training.teacher import Teacher


class Stepper:
    """Takes optimiser steps.

    Args:
        backend: holds the student and its optimiser.
        terms: of the loss.
        teachers: score the teacher's side of every batch, by ``Batch.teacher_number``; none when no objective asks.
        balancer: sets the weights from the gradients at the input of the output head, where they are small and whole
            whatever ZeRO shards; None for the recipe's weights. A step uses the gradients of the step before, so the
            weights are the same for all its micro-batches and processes; the first step measures them in a forward
            pass of its own.
        steps: of the whole training, for weights that move.
    """

    def __init__(
        self,
        backend: Backend,
        terms: Sequence[Term],
        teachers: Sequence[Teacher],
        balancer: Balancer | None,
        steps: int,
    ) -> None:
        self._backend = backend
        self._terms = terms
        self._teachers = teachers
        self._balancer = balancer
        self._steps = steps
        self._weights: Tensor | None = None

    @property
    def names(self) -> list[str]:
        """The losses' names; ``take`` returns a loss's value under its name."""
        return [term.name for term in self._terms]

    def take(self, batches: Sequence[Batch], number: int, *, measure: bool = False) -> dict[str, float]:
        """Take step ``number`` (from 0) on this process's micro-batches; returns what there is to log.

        Args:
            measure: report every loss's gradient norm at the input of the output head too.

        Raises:
            StageError: no objective has anything to compare in the whole batch, or the gradient is not finite.
        """
        measure = (measure or self._balancer is not None) and len(self._terms) > 1
        teachers = [self._teach(batch) for batch in batches]
        statistics = self._global_statistics(batches, teachers)
        weights = self._current_weights(batches, teachers, statistics, number)
        sums = _Sums(weights.device)
        for index, (batch, teacher) in enumerate(zip(batches, teachers, strict=True)):
            student = self._forward(batch, teacher, statistics, measure)
            losses = _shares(student.outputs, statistics)
            sums.add("losses", torch.stack(losses))
            sums.add("tokens", batch.student.attention.sum())
            for term, output in zip(self._terms, student.outputs, strict=True):
                for name, pair in output.metrics.items():
                    sums.add(f"{term.name}.{name}", pair)
            if measure:
                sums.add("gram", _share_of_gram(student.gram, statistics))
            combined = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
            self._backend.backward(combined, last=index == len(batches) - 1)
        norm = self._backend.step(number)
        totals = sums.reduce(self._backend)
        gram = totals.pop("gram", None)
        if self._balancer is not None:
            self._weights = self._balance(gram, totals["losses"])
        units = [float(part[0]) for part in statistics]
        return self._values(totals, weights, gram, units) | {"gradient_norm": norm}

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint must hold beside the backend's own: the next step's weights, and the balancer's state."""
        if self._balancer is None or self._weights is None:
            return None
        return {"weights": self._weights.tolist(), "balancer": self._balancer.state()}

    def restore(self, state: dict[str, Any] | None, device: torch.device) -> None:
        """Continue from what ``state`` gave."""
        if state is not None:
            self._weights = torch.tensor(state["weights"], dtype=torch.float64, device=device)
            self._balancer.restore(state["balancer"])

    def _teach(self, batch: Batch) -> Signals | None:
        return self._teachers[batch.teacher_number].score(batch) if self._teachers else None

    def _global_statistics(self, batches: Sequence[Batch], teachers: Sequence[Signals | None]) -> list[Tensor]:
        local = [
            sum(term.objective.statistics(batch, teacher) for batch, teacher in zip(batches, teachers, strict=True))
            for term in self._terms
        ]
        summed = self._backend.sum(torch.cat(local)).split([len(part) for part in local])
        if not any(part[0] > 0 for part in summed):
            raise StageError(
                f"{', '.join(term.name for term in self._terms)}: a whole batch has nothing to compare; raise "
                "batch_windows"
            )
        return list(summed)

    def _forward(self, batch: Batch, teacher: Signals | None, statistics: Sequence[Tensor], measure: bool) -> Pass:
        def losses(student: Signals) -> list[LossOutput]:
            return [
                term.objective.loss(batch, teacher, student, part)
                for term, part in zip(self._terms, statistics, strict=True)
            ]

        return self._backend.forward(batch.student, losses, measure)

    def _current_weights(
        self, batches: Sequence[Batch], teachers: Sequence[Signals | None], statistics: list[Tensor], number: int
    ) -> Tensor:
        if self._balancer is None:
            return statistics[0].new_tensor([term.weight(number, self._steps) for term in self._terms]).float()
        if self._weights is None:
            sums = _Sums(statistics[0].device)
            for batch, teacher in zip(batches, teachers, strict=True):
                student = self._forward(batch, teacher, statistics, measure=True)
                sums.add("losses", torch.stack(_shares(student.outputs, statistics)))
                sums.add("gram", _share_of_gram(student.gram, statistics))
            totals = sums.reduce(self._backend)
            self._weights = self._balance(totals["gram"], totals["losses"])
        return self._weights.float()

    def _balance(self, gram: Tensor, losses: Tensor) -> Tensor:
        try:
            return self._balancer.weights(gram, losses)
        except ValueError as error:
            raise StageError(str(error)) from None

    def _values(
        self, totals: dict[str, Tensor], weights: Tensor, gram: Tensor | None, units: Sequence[float]
    ) -> dict[str, float]:
        losses = totals.pop("losses")
        values = {"tokens": float(totals.pop("tokens")), "loss": float((weights * losses).sum())}
        for index, (term, loss, weight) in enumerate(zip(self._terms, losses, weights, strict=True)):
            values[f"{term.name}.units"] = units[index]
            if units[index]:
                values[term.name] = float(loss)
            if len(self._terms) > 1:
                values[f"{term.name}.weight"] = float(weight)
            if gram is not None:
                values[f"{term.name}.gradient_norm"] = float(gram[index, index].clamp(min=0).sqrt())
        # What has no denominator in this step has no value: neither 0 nor a NaN, which is no JSON.
        ratios = {name: pair.tolist() for name, pair in totals.items()}
        return values | {name: over / under for name, (over, under) in ratios.items() if under}


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
    """This micro-batch's share of every loss: its total over the global number of units; 0 where there are none."""
    return [output.total / part[0].clamp(min=1).float() for output, part in zip(outputs, statistics, strict=True)]


def _share_of_gram(gram: Tensor, statistics: Sequence[Tensor]) -> Tensor:
    """Inner products of the shares' gradients, from those of the totals'."""
    counts = torch.stack([part[0] for part in statistics]).clamp(min=1)
    return gram / counts[:, None] / counts
