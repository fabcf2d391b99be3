"""``distill``: train a student on text against a teacher that has another tokenizer (or by cross-entropy alone)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.artifacts import DocumentsArtifact, ModelArtifact
from stages.objectives import LossEntry
from stages.objectives.capabilities import (
    GIVES,
    NEED_IN_WORDS,
    TeacherSignal,
    capability,
    least_signal,
    usable_with,
)
from stages.stage import Input, StageContext
from stages.training.config import TrainingConfig

DEFAULT_TOP_K = 64


class DistillConfig(TrainingConfig):
    """Options of ``distill``: those of every training stage, and its losses."""

    losses: tuple[LossEntry, ...] = Field(min_length=1)
    """Terms of the loss; a control arm is the same stage with cross_entropy alone."""
    train_on: Literal["assistant", "all", "last"] = "assistant"
    """Of conversations, the messages to learn from: every assistant turn, every message, or the last assistant turn."""
    combine: Literal["sum", "gradmag", "gradnorm", "pcgrad"] = "sum"
    """``sum``: the weights of the losses. Others set the weights from the losses' gradients at the output head's input:
    ``gradmag`` gives them equal norms, ``gradnorm`` norms that fit how fast each loss falls, ``pcgrad`` removes from
    each what opposes another."""
    teacher_signal: TeacherSignal = "full"
    """What the objectives may see of the teacher, as if it were cached or served: everything, its most probable tokens
    and the scores of the text (``top_k``), or the scores alone."""
    teacher_top_k: int | None = Field(None, ge=2)
    """How many tokens a position with ``teacher_signal: top_k``; default: 64."""

    @model_validator(mode="after")
    def _consistent(self) -> DistillConfig:
        names = [entry.name for entry in self.losses]
        if len(set(names)) < len(names):
            raise ValueError(f"losses names {', '.join(sorted({n for n in names if names.count(n) > 1}))} twice")
        self._check_signal()
        projecting = [entry.name for entry in self.losses if entry.options.trains_projector]
        if len(projecting) > 1:
            raise ValueError(
                f"{' and '.join(projecting)} each train a projection between the models' hidden states, which would "
                "pull them two ways; keep one, or switch the projection off in the other"
            )
        if self.combine != "sum":
            self._check_balance(names)
        return self

    def _check_signal(self) -> None:
        if self.teacher_top_k is not None and self.teacher_signal != "top_k":
            raise ValueError("teacher_top_k has no effect without teacher_signal: top_k; add that, or remove it")
        given = GIVES[self.teacher_signal]
        for index, entry in enumerate(self.losses):
            need = entry.options.needs or capability(entry.name).needs
            if need not in given:
                usable = [name for name in usable_with(self.teacher_signal) if name != entry.name]
                raise ValueError(
                    f"losses[{index}].{entry.name}{' with these options' if entry.options.needs else ''} needs "
                    f"{NEED_IN_WORDS[need]}, which a teacher with teacher_signal: {self.teacher_signal} does not give; "
                    f"use teacher_signal: {least_signal(need)}, or one of {', '.join(usable)}"
                )

    def _check_balance(self, names: list[str]) -> None:
        if len(names) < 2:
            raise ValueError(f"combine: {self.combine} balances two or more losses")
        weighted = [e.name for e in self.losses if e.options.weight != 1.0 or e.options.weight_schedule != "constant"]
        if weighted:
            raise ValueError(f"combine: {self.combine} sets the weights; remove them from {', '.join(weighted)}")
        if blind := [entry.name for entry in self.losses if not entry.options.reaches_head_input]:
            raise ValueError(
                f"combine: {self.combine} compares gradients at the last hidden state, which {', '.join(blind)} leaves "
                "alone; use layers: last"
            )


class Distill:
    """Train the student; the teacher scores every batch as it comes."""

    VERSION = 2
    Config = DistillConfig
    inputs = {
        "student": Input(ModelArtifact),
        "teacher": Input(ModelArtifact, source="teacher"),
        "documents": Input(DocumentsArtifact, source="train", replaceable=True),
    }
    output = ModelArtifact

    def run(self, ctx: StageContext) -> None:
        from losses.balance import GradMag, GradNorm, PCGrad
        from stages.training.aligner import DocumentAligner
        from stages.training.pairing import Teaching
        from stages.training.run import train_student

        config: DistillConfig = ctx.config
        aligner = DocumentAligner(
            teacher_directory=ctx.input("teacher"),
            student_directory=ctx.input("student"),
            window_tokens=config.window_tokens,
            train_on=config.train_on,
        )
        needs_teacher = any(capability(entry.name).needs != "nothing" for entry in config.losses)
        top_k = (config.teacher_top_k or DEFAULT_TOP_K) if config.teacher_signal == "top_k" else None
        balancers = {
            "sum": lambda: None,
            "gradmag": GradMag,
            "gradnorm": GradNorm,
            "pcgrad": lambda: PCGrad(config.seed),
        }
        train_student(
            ctx,
            config,
            config.losses,
            aligner,
            teaching=Teaching(ctx.input("teacher"), top_k) if needs_teacher else None,
            balancer=balancers[config.combine](),
            account=aligner.account,
        )
