"""``distill``: train a student on text against a teacher that has another tokenizer (or by cross-entropy alone)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.artifacts import DocumentsArtifact, ModelArtifact
from stages.objectives import LossEntry
from stages.stage import Input, StageContext
from stages.training.config import TrainingConfig


class DistillConfig(TrainingConfig):
    """Options of ``distill``: those of every training stage, and its losses."""

    losses: tuple[LossEntry, ...] = Field(min_length=1)
    """Terms of the loss; a control arm is the same stage with cross_entropy alone."""
    train_on: Literal["assistant", "all", "last"] = "assistant"
    """Of conversations, the messages to learn from: every assistant turn, every message, or the last assistant turn."""
    combine: Literal["sum", "gradmag"] = "sum"
    """``sum``: fixed weights. ``gradmag``: weights that give every loss the same gradient norm at the head's input."""

    @model_validator(mode="after")
    def _consistent(self) -> DistillConfig:
        names = [entry.name for entry in self.losses]
        if len(set(names)) < len(names):
            raise ValueError(f"losses names {', '.join(sorted({n for n in names if names.count(n) > 1}))} twice")
        if self.combine == "gradmag":
            if len(names) < 2:
                raise ValueError("combine: gradmag balances two or more losses")
            if weighted := [entry.name for entry in self.losses if entry.options.weight != 1.0]:
                raise ValueError(f"combine: gradmag sets the weights; remove weight from {', '.join(weighted)}")
            if any(entry.hidden_states and entry.hidden_states.layers != (-1,) for entry in self.losses):
                raise ValueError("combine: gradmag compares gradients at the last hidden state; use layers: [-1]")
        return self


class Distill:
    """Train the student; the teacher scores every batch as it comes."""

    VERSION = 1
    Config = DistillConfig
    inputs = {
        "student": Input(ModelArtifact),
        "teacher": Input(ModelArtifact, source="teacher"),
        "documents": Input(DocumentsArtifact, source="train"),
    }
    output = ModelArtifact

    def run(self, ctx: StageContext) -> None:
        from losses.balance import GradMag
        from stages.training.aligner import DocumentAligner
        from stages.training.run import train_student

        config: DistillConfig = ctx.config
        aligner = DocumentAligner(
            teacher_directory=ctx.input("teacher"),
            student_directory=ctx.input("student"),
            window_tokens=config.window_tokens,
            train_on=config.train_on,
        )
        needs_teacher = any(entry.name != "cross_entropy" for entry in config.losses)
        train_student(
            ctx,
            config,
            config.losses,
            aligner,
            teacher_directory=ctx.input("teacher") if needs_teacher else None,
            balancer=GradMag() if config.combine == "gradmag" else None,
            account=aligner.account,
        )
