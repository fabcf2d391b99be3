"""Load the two models of a transfer, build the objectives on them, and check both before the first step."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer

from alignment.byte_view import ByteView
from alignment.chat import special_roles_and_turns
from stages.objectives import LossEntry
from stages.objectives.capabilities import GIVES, capability
from stages.output_head import OutputHead
from stages.stage import StageContext, StageError
from stages.training.config import TrainingConfig
from stages.training.models import DTYPES, Reads, ScoringModel, load_model
from stages.training.objectives import ModelFacts, Pair, Term, build_terms
from stages.training.optimiser import select_trainable
from stages.training.teacher import OnlineTeacher, Teacher


@dataclass(frozen=True)
class Teaching:
    """Where a teacher's ModelArtifact lies, and how much of it objectives may see.

    Attributes:
        directory: the teacher's ModelArtifact.
        top_k: its most probable tokens of every position; None for the whole distribution.
    """

    directory: Path
    top_k: int | None = None


@dataclass(frozen=True)
class Models:
    """What a training step works with: the student holds the objectives' own parameters."""

    student: ScoringModel
    teachers: tuple[Teacher, ...]
    terms: list[Term]


def load_models(
    ctx: StageContext,
    config: TrainingConfig,
    losses: Sequence[LossEntry],
    teaching: Teaching | None,
    device: torch.device,
) -> Models:
    """The student of ``ctx.input("student")``, the teacher if there is one, and the terms of the loss.

    Raises:
        StageError: an objective cannot work on this pair, a model's output head is not understood, or it has fewer rows
            than its tokenizer has ids, or a window is longer than its context.
    """
    dtype = DTYPES[config.dtype]
    student_model = load_model(ctx.input("student"), dtype, device)
    student_model.name_or_path = "the student"  # as messages call it: a path into the store tells a user nothing
    teacher_model = None
    if teaching is not None:
        teacher_model = load_model(teaching.directory, dtype, device)
        teacher_model.name_or_path = "the teacher"
    for model in (teacher_model, student_model):
        if model is not None:
            _check_context(model, config.window_tokens)
    pair = Pair(
        teacher=None if teacher_model is None else _facts(teacher_model, teaching.directory),
        student=_facts(student_model, ctx.input("student")),
        cache=ctx.cache,
        seed=config.seed,
    )
    terms = build_terms(losses, pair)
    student = _scoring(student_model, pair.student, [term.objective.student_reads for term in terms]).train()
    select_trainable(student.model, config)
    for term in terms:
        if term.objective.auxiliary is not None:
            student.auxiliary[term.name] = term.objective.auxiliary.to(device, dtype)
    if teacher_model is None:
        return Models(student, (), terms)
    reads = [term.objective.teacher_reads for term in terms]
    if teaching.top_k is not None and teaching.top_k > pair.teacher.view.vocab_size:
        raise StageError(
            f"teacher_top_k is {teaching.top_k:,}, but the teacher has {pair.teacher.view.vocab_size:,} tokens; lower "
            "it, or use teacher_signal: full"
        )
    top_k = 0 if _scores_are_enough(losses) else teaching.top_k
    teacher = _scoring(teacher_model, pair.teacher, reads, top_k).requires_grad_(False)
    return Models(student, (OnlineTeacher(teacher),), terms)


def _scores_are_enough(losses: Sequence[LossEntry]) -> bool:
    """Whether no objective looks at the teacher's predictions or hidden states."""
    return all((entry.options.needs or capability(entry.name).needs) in GIVES["scores"] for entry in losses)


def _check_context(model: nn.Module, window_tokens: int) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and window_tokens > context:
        raise StageError(
            f"window_tokens is {window_tokens:,}, but {model.name_or_path} reads at most {context:,} tokens; lower it"
        )


def _facts(model: nn.Module, directory: Path) -> ModelFacts:
    view = ByteView.from_tokenizer(directory)
    OutputHead.of(model, view.vocab_size)  # before an objective looks for a row that is not there
    return ModelFacts(
        directory=directory,
        view=view,
        roles=special_roles_and_turns(AutoTokenizer.from_pretrained(directory)),
        width=model.config.hidden_size,
        layers=model.config.num_hidden_layers + 1,
        output_weight=model.get_output_embeddings().weight.detach(),
    )


def _scoring(model: nn.Module, facts: ModelFacts, reads: Sequence[Reads], top_k: int | None = None) -> ScoringModel:
    """The model with a head that gives what all objectives read."""
    wanted = functools.reduce(operator.or_, reads)
    mask = torch.from_numpy(facts.view.boundary_mask()) if wanted.boundary else None
    scoring = ScoringModel(model, facts.view.vocab_size, wanted, mask, top_k).to(model.device).eval()
    scoring.check_head()
    return scoring
