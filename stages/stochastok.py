"""``stochastok``: go on training on text whose tokens are split at random (arXiv 2506.01687)."""

from __future__ import annotations

from typing import Literal

from stages.artifacts import DocumentsArtifact, ModelArtifact
from stages.objectives import CrossEntropyOptions, LossEntry
from stages.objectives.token_selection import SelectedCrossEntropyOptions
from stages.stage import Input, StageContext
from stages.training.config import TrainingConfig
from stages.training.data.split_options import SplitOptions


class StochasTokConfig(SplitOptions, TrainingConfig):
    """Options of ``stochastok``: those of every training stage, and what is split and how."""

    train_on: Literal["assistant", "all", "last"] = "assistant"
    """Of conversations, the messages to learn from: every assistant turn, every message, or the last assistant turn."""

    token_selection: SelectedCrossEntropyOptions | None = None
    """Learn only the tokens on which the model has improved most over the one that the stage started from, which reads
    the text without splits; default: all tokens."""

    @property
    def splits(self) -> SplitOptions:
        return self

    @property
    def losses(self) -> tuple[LossEntry, ...]:
        """The one term of the loss."""
        if self.token_selection is not None:
            return (LossEntry(selected_cross_entropy=self.token_selection),)
        return (LossEntry(cross_entropy=CrossEntropyOptions()),)


class StochasTok:
    """Fine-tune by cross-entropy on stochastically split text; every epoch draws new splits.

    With ``proportion: 0`` it is ``distill`` with ``cross_entropy`` alone and without ``models.teacher``. Chunks are the
    tokens that the tokenizer gives: every piece of one is learned where the whole would be.
    """

    VERSION = 3
    Config = StochasTokConfig
    inputs = {
        "student": Input(ModelArtifact),
        "documents": Input(DocumentsArtifact, source="train", replaceable=True),
        "held_out": Input(DocumentsArtifact, source="eval", optional=True),
    }
    output = ModelArtifact

    def run(self, ctx: StageContext) -> None:
        from stages.training.data.aligner import DocumentAligner
        from stages.training.run import train_student
        from stages.training.teachers.teaching import history_of, splits_of

        config: StochasTokConfig = ctx.config
        student = ctx.input("student")
        aligner = DocumentAligner(student, student, config.window_tokens, config.train_on, splits=splits_of(ctx))
        teachings = [] if config.token_selection is None else [history_of(ctx)]
        train_student(ctx, config, config.losses, aligner, teachings=teachings)
