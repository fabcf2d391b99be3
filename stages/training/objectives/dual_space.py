"""Dual-space distillation: hidden states of each model, projected into the other's space."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from losses.chunks import aligned_rows
from losses.dskd import cross_model_attention, dual_space_loss, head_projection, moments, standard_deviation
from losses.output import LossOutput
from losses.same_vocab import row_divergence
from losses.scores import IGNORE_INDEX
from stages.objectives.dual_space import DskdOptions
from stages.stage import StageError
from stages.training.data.batch import Batch, SideBatch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import Pair
from stages.training.objectives.coverage import with_unit_coverage
from stages.training.objectives.projection import project, random_layer


class Dskd:
    """Dual-space knowledge distillation; its units are the student's positions that are compared."""

    def __init__(self, options: DskdOptions, pair: Pair) -> None:
        self._temperature = options.temperature
        self._divergence = row_divergence(options.divergence, beta=options.beta, alpha=options.alpha)
        self.auxiliary = _projectors(options, pair)
        meeting = {"eta": _ExactTokens, "cma": _CrossModelAttention}[options.alignment]
        self._meeting: _Meeting = meeting(self.auxiliary)
        self.teacher_reads = self.student_reads = self._meeting.reads

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        return self._meeting.statistics(batch, teacher)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        met = self._meeting.meet(batch, teacher, student, statistics)
        student_rows, teacher_rows = statistics[:2].clamp(min=1)
        output = dual_space_loss(
            student.head.at(met.student),
            teacher.head.at(met.teacher),
            met.teacher_states,
            met.student_states,
            batch.student.labels.flatten()[met.student],
            divergence=self._divergence,
            temperature=self._temperature,
            teacher_row_weight=(student_rows / teacher_rows).float(),
        )
        return with_unit_coverage(output, batch)


class _Met(NamedTuple):
    """Positions that are compared, and the other model's states for them.

    Attributes:
        student: int64 [N], flat positions in [B * T].
        teacher: int64 [M], flat positions in the teacher's [B * T].
        teacher_states: [N, D_S], the teacher's states in the student's space.
        student_states: [M, D_T], the student's states in the teacher's space.
    """

    student: Tensor
    teacher: Tensor
    teacher_states: Tensor
    student_states: Tensor


class _Meeting(Protocol):
    """Decides which states of the two models meet, and projects them."""

    reads: Reads

    def __init__(self, projectors: nn.ModuleDict) -> None: ...

    def statistics(self, batch: Batch, teacher: Signals) -> Tensor:
        """Numbers of the student's and of the teacher's positions, and what ``meet`` needs of the whole step."""

    def meet(self, batch: Batch, teacher: Signals, student: Signals, statistics: Tensor) -> _Met:
        """The positions of one micro-batch."""


class _ExactTokens:
    """Positions of both models that predict the same bytes as one token (DSKDv2)."""

    reads = Reads()

    def __init__(self, projectors: nn.ModuleDict) -> None:
        self._projectors = projectors

    def statistics(self, batch: Batch, teacher: Signals) -> Tensor:
        rows = aligned_rows(batch.teacher, batch.student, batch.num_chunks)
        return rows.one_to_one.sum(dtype=torch.float64).expand(2)

    def meet(self, batch: Batch, teacher: Signals, student: Signals, statistics: Tensor) -> _Met:
        rows = aligned_rows(batch.teacher, batch.student, batch.num_chunks)
        ours, theirs = rows.student[rows.one_to_one], rows.teacher[rows.one_to_one]
        return _Met(
            ours,
            theirs,
            project(teacher.hidden.flatten(0, 1)[theirs], self._projectors["teacher_to_student"]),
            project(student.hidden.flatten(0, 1)[ours], self._projectors["student_to_teacher"]),
        )


class _CrossModelAttention:
    """Every labelled position, with the attention-weighted states of the other model (DSKD).

    Queries and keys hold the embeddings of a position's own token and of its target, as the embedding layer gives them
    (position embeddings included, where a model adds them there). Unlike the paper's, the teacher's values keep the
    scale of hidden states, which projectors that start from the heads expect.
    """

    reads = Reads(layers=(0,))

    def __init__(self, projectors: nn.ModuleDict) -> None:
        self._projectors = projectors

    def statistics(self, batch: Batch, teacher: Signals) -> Tensor:
        ours, theirs = _labelled(batch)
        own, target = _embeddings(teacher)
        rows = torch.stack([(sequence >= 0).sum() for sequence in (ours, theirs)]).double()
        return torch.cat([rows, *(moments(states[theirs >= 0]) for states in (own, target, teacher.hidden))])

    def meet(self, batch: Batch, teacher: Signals, student: Signals, statistics: Tensor) -> _Met:
        ours, theirs = _labelled(batch)
        own_moments, target_moments, hidden_moments = statistics[2:].split(3)
        key_deviation = standard_deviation(own_moments + target_moments)
        value_scale = standard_deviation(hidden_moments) / standard_deviation(target_moments)
        own, target = _embeddings(teacher)
        values = project(teacher.hidden + target * value_scale, self._projectors["teacher_to_student"])
        states = project(student.hidden, self._projectors["student_to_teacher"])
        # The embeddings pick positions; the student is not trained to be picked.
        query = project(torch.cat(_embeddings(student), -1).detach(), self._projectors["query"])
        to_teacher, to_student = cross_model_attention(
            query, torch.cat([own, target], -1) / key_deviation, ours, theirs
        )
        return _Met(
            (ours.flatten() >= 0).nonzero().squeeze(1),
            (theirs.flatten() >= 0).nonzero().squeeze(1),
            (to_teacher @ values.to(to_teacher.dtype))[ours >= 0].to(values.dtype),
            (to_student @ states.to(to_student.dtype))[theirs >= 0].to(states.dtype),
        )


def _labelled(batch: Batch) -> tuple[Tensor, Tensor]:
    """The window of each position that predicts a scored token, if both models have one in it: int64 [B, T], or -1."""
    sides: tuple[SideBatch, SideBatch] = (batch.student, batch.teacher)
    ours, theirs = (side.window.masked_fill(side.labels == IGNORE_INDEX, -1) for side in sides)
    return ours.masked_fill(~torch.isin(ours, theirs), -1), theirs.masked_fill(~torch.isin(theirs, ours), -1)


def _embeddings(signals: Signals) -> tuple[Tensor, Tensor]:
    """Embeddings [B, T, D] of every position's token and of the one after it, which it predicts."""
    own = signals.layers[0]
    return own, own.roll(-1, dims=1)


def _projectors(options: DskdOptions, pair: Pair) -> nn.ModuleDict:
    widths = (pair.teacher.width, pair.student.width)
    generator = torch.Generator().manual_seed(pair.seed)
    modules = {
        "teacher_to_student": random_layer(*widths, generator),
        "student_to_teacher": random_layer(*reversed(widths), generator),
    }
    if options.alignment == "cma":
        modules["query"] = random_layer(2 * pair.student.width, 2 * pair.teacher.width, generator)
    if options.projectors == "pseudo_inverse":
        teacher_rows, student_rows = _shared_rows(pair)
        with torch.no_grad():
            modules["teacher_to_student"].weight.copy_(head_projection(teacher_rows, student_rows))
            modules["student_to_teacher"].weight.copy_(head_projection(student_rows, teacher_rows))
    return nn.ModuleDict(modules)


def _shared_rows(pair: Pair) -> tuple[Tensor, Tensor]:
    """Output embeddings of the tokens that both models have.

    Raises:
        StageError: too few tokens to determine the projectors.
    """
    teacher, student, shared = pair.teacher, pair.student, pair.shared_tokens()
    needed = max(teacher.width, student.width)
    if len(shared.student) < needed:
        raise StageError(
            f"dskd.projectors: pseudo_inverse fits the projectors to the tokens that both vocabularies have; these are "
            f"{len(shared.student)}, but hidden states of width {needed} need as many at least. Use projectors: random"
        )
    pairs = ((teacher, shared.teacher), (student, shared.student))
    teacher_rows, student_rows = (
        model.output_weight[torch.from_numpy(ids).to(model.output_weight.device)] for model, ids in pairs
    )
    return teacher_rows, student_rows
