"""Objectives that compare chunks: their probabilities, or the hidden states at their ends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses.alm import alm_from_token_scores
from losses.chunks import AlignedScores, chunk_last, last_token_index
from losses.hidden import channel_magnitude, hidden_state_loss
from losses.output import LossOutput
from stages.objectives.chunk_scores import AlmOptions, HiddenStateOptions
from stages.stage import StageError
from stages.training.data.batch import Batch, SideBatch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import Pair
from stages.training.objectives.projection import project
from stages.training.objectives.text_scores import TextScores


def alm(options: AlmOptions, pair: Pair) -> TextScores:
    """Approximate likelihood matching over the chunks of both sides; a unit is a chunk, after merging, which depends on
    the teacher alone."""

    def compare(batch: Batch, teacher: AlignedScores, student: AlignedScores) -> LossOutput:
        return alm_from_token_scores(
            teacher,
            student,
            batch.num_chunks,
            temperature=options.temperature,
            divergence=options.divergence,
            gamma=options.gamma,
            max_group_chunks=options.max_group_chunks,
            debias=options.debias,
        )

    return TextScores(
        compare, teacher_boundary=options.debias or options.gamma is not None, student_boundary=options.debias
    )


class HiddenStates:
    """Relative distance of hidden states at the last token of each chunk, mean over the chosen pairs of layers."""

    def __init__(self, options: HiddenStateOptions, pair: Pair) -> None:
        _check_models(options, pair)
        self._options = options
        self._pairs = options.layer_pairs(pair.teacher.layers)
        self.teacher_reads = Reads(layers=tuple(dict.fromkeys(teacher for teacher, _ in self._pairs)))
        self.student_reads = Reads(layers=tuple(dict.fromkeys(student for _, student in self._pairs)))
        self.auxiliary = _projections(pair, len(self._pairs)) if options.projection else None

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
        magnitudes = [
            channel_magnitude(
                self._ends(batch.teacher, teacher.layers[layer], batch.num_chunks), valid, self._options.distance
            )[0]
            for layer, _ in self._pairs
        ]
        return torch.cat([valid.sum(dtype=torch.float64).view(1), *(each.double() for each in magnitudes)])

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        valid = self._valid(batch)
        scales = (statistics[1:] / statistics[0].clamp(min=1)).float().view(len(self._pairs), -1)
        parts = []
        for index, (teacher_layer, student_layer) in enumerate(self._pairs):
            ends = self._ends(batch.student, student.layers[student_layer], batch.num_chunks)
            parts.append(
                hidden_state_loss(
                    self._ends(batch.teacher, teacher.layers[teacher_layer], batch.num_chunks),
                    ends if self.auxiliary is None else project(ends, self.auxiliary[index]),
                    valid,
                    scale=scales[index] if self._options.channelwise else scales[index].mean(),
                    distance=self._options.distance,
                )
            )
        return LossOutput(torch.stack([part.total for part in parts]).mean(), parts[0].count, {})


def _projections(pair: Pair, number: int) -> nn.ModuleList:
    """Linear maps from the student's width to the teacher's that keep the size of a state, drawn from the seed."""
    generator = torch.Generator().manual_seed(pair.seed)
    maps = nn.ModuleList(nn.Linear(pair.student.width, pair.teacher.width) for _ in range(number))
    for each in maps:
        nn.init.normal_(each.weight, std=pair.student.width**-0.5, generator=generator)
        nn.init.zeros_(each.bias)
    return maps


def _check_models(options: HiddenStateOptions, pair: Pair) -> None:
    if pair.teacher.width != pair.student.width and not options.projection:
        raise StageError(
            f"hidden_states compares states of one width; the teacher has {pair.teacher.width}, the student "
            f"{pair.student.width}: set hidden_states.projection: true to map the student's by a trained layer"
        )
    if options.layers == "all" and pair.teacher.layers != pair.student.layers:
        raise StageError(
            f"hidden_states.layers: all needs models of one depth; the teacher has {pair.teacher.layers} hidden states,"
            f" the student {pair.student.layers}: name pairs of layers instead, as [[{pair.teacher.layers - 1}, "
            f"{pair.student.layers - 1}]]"
        )
    for layers in options.layer_pairs(pair.teacher.layers):
        for name, model, layer in zip(("teacher", "student"), (pair.teacher, pair.student), layers, strict=True):
            if not -model.layers <= layer < model.layers:
                raise StageError(
                    f"hidden_states.layers: the {name} has hidden states 0 to {model.layers - 1}, not {layer}"
                )
