"""From a recipe's ``losses:`` to functions of a batch, the teacher's signals and the student's.

Every objective reports additive *statistics* before the student runs: a float64 vector whose first entry is its number
of units. The engine sums it over micro-batches and processes, so that each loss is divided by its global count and a
split of the batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from losses.alm import AlignedScores, alm_from_token_scores
from losses.chunks import chunk_last, last_token_index
from losses.hidden import channel_energy, hidden_state_loss
from losses.output import LossOutput
from losses.sft import cross_entropy_loss
from stages.objectives import AlmOptions, HiddenStateOptions, LossEntry
from stages.training.data import Batch, SideBatch
from stages.training.models import Signals


class Objective(Protocol):
    """One term of the training loss."""

    name: str
    weight: float

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        """Additive facts known before the student runs: float64 [1 + anything]; the first is the number of units."""

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        """Sum over this micro-batch's units, given the statistics of the whole step."""


class CrossEntropy:
    """Mean negative log-probability of the student's tokens."""

    name = "cross_entropy"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        return batch.student.scored.sum(dtype=torch.float64).view(1)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        return cross_entropy_loss(student.label_logp, batch.student.scored)


class Alm:
    """Approximate likelihood matching over the chunks of both sides."""

    name = "alm"

    def __init__(self, options: AlmOptions) -> None:
        self.weight = options.weight
        self._options = options

    def _apply(self, batch: Batch, teacher: Signals, label_logp: Tensor, boundary_logp: Tensor | None) -> LossOutput:
        return alm_from_token_scores(
            AlignedScores(teacher.label_logp, teacher.boundary_logp, batch.teacher.scored, batch.teacher.chunk),
            AlignedScores(label_logp, boundary_logp, batch.student.scored, batch.student.chunk),
            batch.num_chunks,
            temperature=self._options.temperature,
            divergence=self._options.divergence,
            gamma=self._options.gamma,
            debias=self._options.debias,
        )

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        # Which chunks are merged depends on the teacher alone, so any student scores give the count.
        unknown = torch.zeros_like(batch.student.ids, dtype=torch.float32)
        return self._apply(batch, teacher, unknown, unknown).count.to(torch.float64).view(1)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        return self._apply(batch, teacher, student.label_logp, student.boundary_logp)


class HiddenStates:
    """Relative squared distance of hidden states at the last token of each chunk, mean over the chosen layers."""

    name = "hidden_states"

    def __init__(self, options: HiddenStateOptions) -> None:
        self.weight = options.weight
        self._layers = options.layers

    @staticmethod
    def _ends(side: SideBatch, states: Tensor, num_chunks: int) -> Tensor:
        """Hidden states at the last token of every chunk of every window: [B * C, D]."""
        return chunk_last(states, side.chunk, num_chunks).flatten(0, 1)

    @staticmethod
    def _valid(batch: Batch) -> Tensor:
        """Chunks that exist, on both sides by construction: bool [B * C]."""
        return (last_token_index(batch.student.chunk, batch.num_chunks) >= 0).flatten()

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        valid = self._valid(batch)
        energies = [
            channel_energy(self._ends(batch.teacher, teacher.layers[layer], batch.num_chunks), valid)[0]
            for layer in self._layers
        ]
        return torch.cat([valid.sum(dtype=torch.float64).view(1), *(energy.double() for energy in energies)])

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        valid = self._valid(batch)
        mean_squares = (statistics[1:] / statistics[0]).float().view(len(self._layers), -1)
        parts = [
            hidden_state_loss(
                self._ends(batch.teacher, teacher.layers[layer], batch.num_chunks),
                self._ends(batch.student, student.layers[layer], batch.num_chunks),
                valid,
                scale=mean_square,
            )
            for layer, mean_square in zip(self._layers, mean_squares, strict=True)
        ]
        return LossOutput(torch.stack([part.total for part in parts]).mean(), parts[0].count, {})


def build_objectives(entries: Sequence[LossEntry]) -> list[Objective]:
    """The objectives of a recipe's ``losses:``, in order."""
    makers = {"cross_entropy": lambda o: CrossEntropy(o.weight), "alm": Alm, "hidden_states": HiddenStates}
    return [makers[entry.name](entry.options) for entry in entries]


def hidden_layers(entries: Sequence[LossEntry]) -> tuple[int, ...]:
    """Which hidden states the losses read."""
    layers = [layer for entry in entries if entry.hidden_states for layer in entry.hidden_states.layers]
    return tuple(dict.fromkeys(layers))
