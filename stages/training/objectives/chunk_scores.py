"""Objectives that compare chunks: their probabilities, or the hidden states at their ends."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.alm import AlignedScores, alm_from_token_scores
from losses.chunks import chunk_last, last_token_index
from losses.hidden import channel_energy, hidden_state_loss
from losses.output import LossOutput
from stages.objectives.chunk_scores import AlmOptions, HiddenStateOptions
from stages.stage import StageError
from stages.training.data import Batch, SideBatch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import Pair


class Alm:
    """Approximate likelihood matching over the chunks of both sides."""

    auxiliary = None

    def __init__(self, options: AlmOptions, pair: Pair) -> None:
        self._options = options
        self.teacher_reads = self.student_reads = Reads(label=True, boundary=True)

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

    auxiliary = None

    def __init__(self, options: HiddenStateOptions, pair: Pair) -> None:
        self._layers = options.layers
        self.teacher_reads = self.student_reads = Reads(layers=options.layers)
        _check_layers(pair, options.layers)

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
        mean_squares = (statistics[1:] / statistics[0].clamp(min=1)).float().view(len(self._layers), -1)
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


def _check_layers(pair: Pair, layers: tuple[int, ...]) -> None:
    if pair.teacher.width != pair.student.width:
        raise StageError(
            f"hidden_states needs models of one width; the teacher has {pair.teacher.width}, the student "
            f"{pair.student.width}"
        )
    for layer in layers:
        for name, model in (("teacher", pair.teacher), ("student", pair.student)):
            if not -model.layers <= layer < model.layers:
                raise StageError(
                    f"hidden_states.layers: the {name} has hidden states 0 to {model.layers - 1}, not {layer}"
                )
