"""``stochastok``: go on training on text whose tokens are split at random (arXiv 2506.01687)."""

from __future__ import annotations

from pydantic import Field

from stages.artifacts import DocumentsArtifact, ModelArtifact
from stages.objectives import CrossEntropyOptions, LossEntry
from stages.stage import Input, StageContext
from stages.training.config import TrainingConfig


class StochasTokConfig(TrainingConfig):
    """Options of ``stochastok``: those of every training stage, and how much is split."""

    proportion: float = Field(0.1, ge=0, le=1)
    """Split attempts as a share of a document's tokens; 0 is the same-budget control."""


class StochasTok:
    """Fine-tune by cross-entropy on stochastically split text; every epoch draws new splits."""

    VERSION = 2
    Config = StochasTokConfig
    inputs = {
        "student": Input(ModelArtifact),
        "documents": Input(DocumentsArtifact, source="train", replaceable=True),
        "held_out": Input(DocumentsArtifact, source="eval", optional=True),
    }
    output = ModelArtifact

    def run(self, ctx: StageContext) -> None:
        from stages.training.random_splits import RandomSplits
        from stages.training.run import train_student

        config: StochasTokConfig = ctx.config
        maker = RandomSplits(ctx.input("student"), config.proportion, config.window_tokens, config.seed)
        train_student(ctx, config, (LossEntry(cross_entropy=CrossEntropyOptions()),), maker)
