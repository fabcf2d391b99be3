"""One optimiser step over a global batch: teacher, statistics, losses, balance, gradient, update.

Every number that leaves this module is a sum over all micro-batches and processes divided by another such sum, so
neither the split of the batch nor the number of processes shows in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from losses.balance import Balancer
from losses.output import LossOutput
from stages.stage import StageError
from stages.training.backends.backend import Backend
from stages.training.data.batch import Batch
from stages.training.models import Pass, Signals
from stages.training.monitoring.contents import contents
from stages.training.monitoring.step_record import CONTENTS, StepRecord
from stages.training.monitoring.timeline import Timeline
from stages.training.objectives import Term
from stages.training.teachers.teacher import Teacher


class Stepper:
    """Takes optimiser steps.

    Args:
        backend: holds the student and its optimiser.
        terms: of the loss.
        teachers: score the teacher's side of every batch, by ``Batch.teacher_number``; none when no objective asks.
        balancer: sets the weights from the gradients at the input of the output head, where they are small and whole
            whatever ZeRO shards; None for the recipe's weights. A step uses the gradients of the step before, so the
            weights are the same for all its micro-batches and processes; the first step, and any other in which a loss
            has something to compare for the first time, measures them in a forward pass of its own.
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
        self._measured = torch.zeros(len(terms), dtype=torch.bool)

    @property
    def names(self) -> list[str]:
        """The losses' names; ``take`` returns a loss's value under its name."""
        return [term.name for term in self._terms]

    def take(
        self, batches: Sequence[Batch], number: int, *, measure: bool = False, counts: Mapping[str, float] | None = None
    ) -> StepRecord:
        """Take step ``number`` (from 0) on this process's micro-batches, without waiting for the device.

        Args:
            measure: report every loss's gradient norm at the input of the output head too.
            counts: facts of this process to add up over all of them with the record's contents, by the same names in
                every process.

        Returns:
            What there is to log. A gradient that is not finite has been applied like any other: look, and go back.
        """
        measure = (measure or self._balancer is not None) and len(self._terms) > 1
        device = batches[0].student.ids.device
        timeline, sums = Timeline(device), _Sums(device)
        timeline.enter("teacher")
        teachers = [self._teach(batch) for batch in batches]
        timeline.enter("loss")
        statistics = self._global_statistics(batches, teachers)
        weights = self._current_weights(batches, teachers, statistics, number)
        for index, (batch, teacher) in enumerate(zip(batches, teachers, strict=True)):
            timeline.enter("forward")
            student = self._forward(batch, teacher, statistics, measure, timeline)
            losses = _shares(student.outputs, statistics)
            self._add(sums, batch, losses, student, statistics)
            combined = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
            timeline.enter("backward")
            self._backend.backward(combined, last=index == len(batches) - 1)
        timeline.enter("optimiser")
        # Every process knows the norm; their mean is one number for all, whatever a process's arithmetic made of it.
        sums.add("gradient_norm", self._backend.step(number))
        for name, value in ({"processes": 1.0} | dict(counts or {})).items():
            sums.add(f"{CONTENTS}{name}", torch.tensor(value))
        totals = sums.reduce(self._backend)
        if self._balancer is not None:
            self._balance(totals, statistics)
        timeline.stop()
        facts = {"weights": weights, "units": torch.stack([part[0] for part in statistics])}
        return StepRecord(totals | facts, self._values, timeline)

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint must hold beside the backend's own: the next step's weights, and what led to them."""
        if self._balancer is None or self._weights is None:
            return None
        return {
            "weights": self._weights.tolist(),
            "measured": self._measured.tolist(),
            "balancer": self._balancer.state(),
        }

    def restore(self, state: dict[str, Any] | None, device: torch.device) -> None:
        """Continue from what ``state`` gave; None goes back to before the first step."""
        if self._balancer is not None:
            weights = None if state is None else torch.tensor(state["weights"], dtype=torch.float64, device=device)
            self._weights = weights
            self._measured = torch.tensor([False] * len(self._terms) if state is None else state["measured"])
            self._balancer.restore(None if state is None else state["balancer"])

    def _add(
        self, sums: _Sums, batch: Batch, losses: Sequence[Tensor], student: Pass, statistics: Sequence[Tensor]
    ) -> None:
        sums.add("losses", torch.stack(losses))
        for term, output in zip(self._terms, student.outputs, strict=True):
            for name, pair in output.metrics.items():
                sums.add(f"{term.name}.{name}", pair)
        if student.gram is not None:
            sums.add("gram", _share_of_gram(student.gram, statistics))
        for name, value in contents(batch, len(self._teachers)).items():
            sums.add(f"{CONTENTS}{name}", value)

    def _teach(self, batch: Batch) -> Signals | None:
        return self._teachers[batch.teacher_number].score(batch) if self._teachers else None

    def _global_statistics(self, batches: Sequence[Batch], teachers: Sequence[Signals | None]) -> list[Tensor]:
        local = [_statistics(term, batches, teachers) for term in self._terms]
        return list(self._backend.sum(torch.cat(local)).split([len(part) for part in local]))

    def _forward(
        self,
        batch: Batch,
        teacher: Signals | None,
        statistics: Sequence[Tensor],
        measure: bool,
        timeline: Timeline | None = None,
    ) -> Pass:
        def losses(student: Signals) -> list[LossOutput]:
            if timeline is not None:
                timeline.enter("loss")
            return [
                term.objective.loss(batch, teacher, student, part) if term.learns_from(batch) else _nothing(student)
                for term, part in zip(self._terms, statistics, strict=True)
            ]

        return self._backend.forward(batch.student, losses, measure)

    def _current_weights(
        self, batches: Sequence[Batch], teachers: Sequence[Signals | None], statistics: list[Tensor], number: int
    ) -> Tensor:
        if self._balancer is None:
            weights = torch.tensor([term.weight(number, self._steps) for term in self._terms])
            return weights.to(statistics[0].device, non_blocking=True)
        if self._weights is None or self._meets_another(statistics):
            sums = _Sums(statistics[0].device)
            for batch, teacher in zip(batches, teachers, strict=True):
                student = self._forward(batch, teacher, statistics, measure=True)
                sums.add("losses", torch.stack(_shares(student.outputs, statistics)))
                sums.add("gram", _share_of_gram(student.gram, statistics))
            self._balance(sums.reduce(self._backend), statistics)
        return self._weights.float()

    def _meets_another(self, statistics: Sequence[Tensor]) -> bool:
        """Whether a loss has something to compare for the first time; waits for the device until all of them had."""
        return not self._measured.all() and bool((_present(statistics).cpu() & ~self._measured).any())

    def _balance(self, totals: Mapping[str, Tensor], statistics: Sequence[Tensor]) -> None:
        """Set the weights of the coming step from the gradients and the values of the losses."""
        present = _present(statistics)
        self._measured |= present.cpu()
        try:
            self._weights = self._balancer.weights(totals["gram"], totals["losses"], present)
        except ValueError:
            # The step that has no finite gradient is found out when it is read, and taken back; until then there are
            # no weights either.
            self._weights = torch.full_like(totals["losses"], torch.nan)

    def _values(self, totals: dict[str, Tensor]) -> dict[str, float]:
        losses, weights, units = (totals.pop(name).tolist() for name in ("losses", "weights", "units"))
        if not any(units):
            raise StageError(
                f"{', '.join(term.name for term in self._terms)}: a whole batch has nothing to compare; raise "
                "batch_windows"
            )
        norm, gram = totals.pop("gradient_norm"), totals.pop("gram", None)
        values = {
            "loss": sum(weight * loss for weight, loss in zip(weights, losses, strict=True)),
            "gradient_norm": float(norm / totals[f"{CONTENTS}processes"]),
        }
        for index, term in enumerate(self._terms):
            values[f"{term.name}.units"] = units[index]
            if units[index]:
                values[term.name] = losses[index]
            if len(self._terms) > 1:
                values[f"{term.name}.weight"] = weights[index]
            if gram is not None:
                values[f"{term.name}.gradient_norm"] = float(gram[index, index].clamp(min=0).sqrt())
        # What has no denominator in this step has no value: neither 0 nor a NaN, which is no JSON.
        ratios = {name: pair.tolist() for name, pair in totals.items() if not name.startswith(CONTENTS)}
        return values | {name: over / under for name, (over, under) in ratios.items() if under}


class _Sums:
    """Named float64 sums that one collective call adds up over all processes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().to(self._device, torch.float64, non_blocking=True)
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def reduce(self, backend: Backend) -> dict[str, Tensor]:
        flat = backend.sum(torch.cat([value.flatten() for value in self._sums.values()]))
        parts = flat.split([value.numel() for value in self._sums.values()])
        return {name: part.view(value.shape) for (name, value), part in zip(self._sums.items(), parts, strict=True)}


def _statistics(term: Term, batches: Sequence[Batch], teachers: Sequence[Signals | None]) -> Tensor:
    """What a term knows of this process's micro-batches; no units where none is for it, and then in no process."""
    own = [
        term.objective.statistics(batch, teacher)
        for batch, teacher in zip(batches, teachers, strict=True)
        if term.learns_from(batch)
    ]
    return sum(own) if own else torch.zeros(1, dtype=torch.float64, device=batches[0].student.ids.device)


def _present(statistics: Sequence[Tensor]) -> Tensor:
    """bool [L]: the losses that have something to compare in this step, in any process."""
    return torch.stack([part[0] for part in statistics]) > 0


def _nothing(student: Signals) -> LossOutput:
    """The loss of a term for another teacher's batch: 0, and differentiable like all others."""
    zero = student.hidden[:0].float().sum()
    return LossOutput(zero, zero.detach(), {})


def _shares(outputs: Sequence[LossOutput], statistics: Sequence[Tensor]) -> list[Tensor]:
    """This micro-batch's share of every loss: its total over the global number of units; 0 where there are none."""
    return [output.total / part[0].clamp(min=1).float() for output, part in zip(outputs, statistics, strict=True)]


def _share_of_gram(gram: Tensor, statistics: Sequence[Tensor]) -> Tensor:
    """Inner products of the shares' gradients, from those of the totals'."""
    counts = torch.stack([part[0] for part in statistics]).clamp(min=1)
    return gram / counts[:, None] / counts
