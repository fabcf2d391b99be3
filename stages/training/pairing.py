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
from stages.stage import StageContext, StageError
from stages.training.config import TrainingConfig
from stages.training.models import DTYPES, Reads, ScoringModel, load_model
from stages.training.objectives import ModelFacts, Pair, Term, build_terms
from stages.training.optimiser import select_trainable


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
    teacher: ScoringModel | None
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
            than its tokenizer has ids.
    """
    dtype = DTYPES[config.dtype]
    student_model = load_model(ctx.input("student"), dtype, device)
    teacher_model = load_model(teaching.directory, dtype, device) if teaching else None
    pair = Pair(
        teacher=None if teacher_model is None else _facts("teacher", teacher_model, teaching.directory),
        student=_facts("student", student_model, ctx.input("student")),
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
        return Models(student, None, terms)
    reads = [term.objective.teacher_reads for term in terms]
    teacher = _scoring(teacher_model, pair.teacher, reads, teaching.top_k).requires_grad_(False)
    return Models(student, teacher, terms)


def _facts(side: str, model: nn.Module, directory: Path) -> ModelFacts:
    view = ByteView.from_tokenizer(directory)
    weight = model.get_output_embeddings().weight.detach()
    if view.vocab_size > len(weight):
        raise StageError(
            f"the {side}'s tokenizer has {view.vocab_size:,} ids, but its output matrix only {len(weight):,} rows: "
            "the last ids would have no probability. Use the tokenizer that the model was trained with"
        )
    return ModelFacts(
        directory=directory,
        view=view,
        roles=special_roles_and_turns(AutoTokenizer.from_pretrained(directory)),
        width=model.config.hidden_size,
        layers=model.config.num_hidden_layers + 1,
        output_weight=weight,
    )


def _scoring(model: nn.Module, facts: ModelFacts, reads: Sequence[Reads], top_k: int | None = None) -> ScoringModel:
    """The model with a head that gives what all objectives read."""
    wanted = functools.reduce(operator.or_, reads)
    mask = torch.from_numpy(facts.view.boundary_mask()) if wanted.boundary else None
    scoring = ScoringModel(model, facts.view.vocab_size, wanted, mask, top_k).to(model.device).eval()
    scoring.check_head()
    return scoring
