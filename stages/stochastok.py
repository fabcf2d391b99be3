"""``stochastok``: go on training on text whose tokens are split at random (arXiv 2506.01687)."""

from __future__ import annotations

from pydantic import Field

from stages.artifacts import DocumentsArtifact, ModelArtifact
from stages.objectives import CrossEntropyOptions, LossEntry
from stages.stage import Input, StageContext, StageError
from stages.training.config import TrainingConfig


class StochasTokConfig(TrainingConfig):
    """Options of ``stochastok``: those of every training stage, and how much is split."""

    proportion: float = Field(0.1, ge=0, le=1)
    """Split attempts as a share of a document's tokens; 0 is the same-budget control."""


class StochasTok:
    """Fine-tune by cross-entropy on stochastically split text; every epoch draws new splits."""

    VERSION = 1
    Config = StochasTokConfig
    inputs = {
        "student": Input(ModelArtifact),
        "documents": Input(DocumentsArtifact, source="train", replaceable=True),
    }
    output = ModelArtifact

    def run(self, ctx: StageContext) -> None:
        from alignment.byte_view import ByteView, InexactEncoding
        from alignment.splits import SplitTable
        from stages.training.random import generator
        from stages.training.run import train_student
        from stages.training.windows import Document, Window, plain_windows

        config: StochasTokConfig = ctx.config
        view = ByteView.from_tokenizer(ctx.input("student"))
        table = SplitTable.from_view(view)

        def windows_of(document: Document, number: int, epoch: int) -> list[Window]:
            if document.messages is not None:
                raise StageError(f"document {document.id} is a conversation; stochastok takes plain text")
            try:
                ids = view.encode(document.text).ids
            except InexactEncoding as error:
                raise StageError(f"document {document.id}: {error}") from None
            split = table.expand(ids, config.proportion, rng=generator(config.seed, epoch, number))
            return plain_windows(split, view.byte_lengths, view.prefix_ids, config.window_tokens)

        train_student(ctx, config, (LossEntry(cross_entropy=CrossEntropyOptions()),), windows_of)
