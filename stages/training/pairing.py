"""Load the student and its teachers, build the objectives on them, and check all before the first step."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer

from alignment.byte_view import ByteView
from alignment.chat import special_roles_and_turns
from stages.objectives import LossEntry
from stages.objectives.capabilities import GIVES, capability
from stages.output_head import OutputHead
from stages.sharded import is_split, whole
from stages.stage import StageContext, StageError
from stages.training.adapters.trained import choose_trained
from stages.training.attention import use_attention
from stages.training.backends.backend import trained_parameters
from stages.training.backends.zero import Zero, split_while_loading
from stages.training.config import TrainingConfig
from stages.training.models import DTYPES, Reads, ScoringModel, load_model
from stages.training.objectives import ModelFacts, Pair, Term, build_terms
from stages.training.teachers.averaged_teacher import AveragedTeacher
from stages.training.teachers.cached_teacher import CachedTeacher, cached_facts
from stages.training.teachers.split_teacher import SplitTeacher
from stages.training.teachers.teacher import OnlineTeacher, Teacher
from stages.training.teachers.teacher_loading import load_teacher
from stages.training.teachers.teaching import Teaching


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
    teachings: Sequence[Teaching],
    device: torch.device,
    zero: Zero,
) -> Models:
    """The student of ``ctx.input("student")``, its teachers if there are any, and the terms of the loss.

    Raises:
        StageError: an objective cannot work on this pair, a model's output head is not understood, or it has fewer rows
            than its tokenizer has ids, or a window is longer than its context.
    """
    dtype = DTYPES[config.dtype]
    with split_while_loading(zero.student):
        student_model = load_model(ctx.input("student"), dtype, device)
    student_model.name_or_path = "the student"  # as messages call it: a path into the store tells a user nothing
    with split_while_loading(zero.teacher):
        teacher_models = [_teacher_model(teaching, student_model, device) for teaching in teachings]
    for model in (*teacher_models, student_model):
        if model is not None:
            if (attention := use_attention(model, config.attention)) != config.attention:
                ctx.progress(f"note: {model.name_or_path} has no {config.attention} attention; it uses {attention}")
            _check_context(model, config.window_tokens)
    heads = [model.get_output_embeddings() for model in (*teacher_models, student_model) if model is not None]
    with whole(parameter for head in heads for parameter in head.parameters()):
        student_facts = _facts(student_model, ctx.input("student"))
        facts = [_teacher_facts(*each) for each in zip(teachings, teacher_models, strict=True)]
        pairs = [Pair(teacher, student_facts, cache=ctx.cache, seed=config.seed) for teacher in facts or [None]]
        terms = _terms(losses, teachings, pairs)
    student_reads = [term.objective.student_reads for term in terms]
    student = _scoring(student_model, student_facts, student_reads, packing=config.packing)
    with split_while_loading(zero.student):  # PEFT gathers what it measures, layer by layer
        choose_trained(student_model, config)
    if config.activation_checkpointing:
        _checkpoint_activations(student_model)
    for term in terms:
        if term.objective.auxiliary is not None:
            student.auxiliary[term.name.replace("/", "_")] = term.objective.auxiliary.to(device, dtype)
    teachers = [
        _teacher(
            teaching, model, student, known, losses, [term for term in terms if term.teacher in (None, number)], zero
        )
        for number, (teaching, model, known) in enumerate(zip(teachings, teacher_models, facts, strict=True))
    ]
    return Models(student.train(), tuple(teachers), terms)


def _terms(losses: Sequence[LossEntry], teachings: Sequence[Teaching], pairs: Sequence[Pair]) -> list[Term]:
    """The losses, each once for every teacher that it looks at.

    Raises:
        StageError: an objective cannot work on a pair of models.
    """
    if len(teachings) < 2:
        return build_terms(losses, pairs[0])
    terms: list[Term] = []
    for entry in losses:
        if capability(entry.name).needs == "nothing":
            terms += build_terms([entry], pairs[0])
            continue
        for number, (teaching, pair) in enumerate(zip(teachings, pairs, strict=True)):
            (term,) = build_terms([entry], pair)
            terms.append(replace(term, teacher=number, teacher_name=teaching.name, factor=teaching.weight))
    return terms


def _checkpoint_activations(model: nn.Module) -> None:
    try:
        model.activation_checkpointing_enable()
    except ValueError:
        raise StageError(
            f"activation_checkpointing: transformers cannot do it for {type(model).__name__}; remove the option"
        ) from None


def _teacher_model(teaching: Teaching, student: nn.Module, device: torch.device) -> nn.Module | None:
    if teaching.scores is not None:
        return None
    if teaching.is_student:
        return student
    model = load_teacher(teaching.directory, teaching.dtype, device)
    model.name_or_path = teaching.title
    return model


def _teacher(
    teaching: Teaching,
    model: nn.Module | None,
    student: ScoringModel,
    facts: ModelFacts | None,
    losses: Sequence[LossEntry],
    terms: Sequence[Term],
    zero: Zero,
) -> Teacher:
    if teaching.scores is not None:
        return CachedTeacher.of(teaching.scores, terms, 0 if _scores_are_enough(losses) else teaching.top_k)
    if teaching.top_k is not None and teaching.top_k > facts.view.vocab_size:
        raise StageError(
            f"teacher_top_k is {teaching.top_k:,}, but {teaching.title} has {facts.view.vocab_size:,} tokens; lower "
            "it, or use teacher_signal: full"
        )
    top_k = 0 if _scores_are_enough(losses) else teaching.top_k
    teacher_reads = [term.objective.teacher_reads for term in terms]
    scoring = _scoring(model, facts, teacher_reads, top_k, packing=student.packing)
    if not teaching.is_student:
        scoring.requires_grad_(False)
        if teaching.average is not None:
            return AveragedTeacher(scoring, trained_parameters(student).keys(), teaching.average)
        return OnlineTeacher(scoring) if zero.teacher is None else SplitTeacher(scoring, zero.teacher)
    from stages.training.teachers.self_teacher import SelfTeacher  # PEFT takes a second to import

    return SelfTeacher.of(student, scoring)


def _scores_are_enough(losses: Sequence[LossEntry]) -> bool:
    """Whether no objective looks at the teacher's predictions or hidden states."""
    return all((entry.options.needs or capability(entry.name).needs) in GIVES["scores"] for entry in losses)


def _check_context(model: nn.Module, window_tokens: int) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and window_tokens > context:
        raise StageError(
            f"window_tokens is {window_tokens:,}, but {model.name_or_path} reads at most {context:,} tokens; lower it"
        )


def _teacher_facts(teaching: Teaching, model: nn.Module | None) -> ModelFacts | None:
    return cached_facts(teaching.scores) if model is None else _facts(model, teaching.directory)


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


def _scoring(
    model: nn.Module, facts: ModelFacts, reads: Sequence[Reads], top_k: int | None = None, *, packing: bool
) -> ScoringModel:
    """The model with a head that gives what all objectives read."""
    wanted = functools.reduce(operator.or_, reads)
    mask = torch.from_numpy(facts.view.boundary_mask()) if wanted.boundary else None
    scoring = ScoringModel(model, facts.view.vocab_size, wanted, mask, top_k, packing).to(model.device).eval()
    if not is_split(model):  # one that is, can run only once DeepSpeed has it
        scoring.check()
    return scoring
