"""Put on-policy distillation together: the stage's windows of text in, those of its steps out."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from stages.stage import StageContext
from stages.training.config import TrainingConfig
from stages.training.data.aligner import DocumentAligner
from stages.training.data.order import ReadingOrder
from stages.training.data.prefetch import BlockSource
from stages.training.models import ScoringModel
from stages.training.on_policy import record
from stages.training.on_policy.guards import Guards
from stages.training.on_policy.options import OnPolicyOptions
from stages.training.on_policy.prompts import PromptStream
from stages.training.on_policy.rollouts import Author
from stages.training.on_policy.stream import OnPolicyStream, WindowSource
from stages.training.on_policy.windows import RolloutAligner
from stages.training.random import generator

_PROMPTS = 0x70726F6D7074  # the stream of random numbers of this module


@dataclass(frozen=True)
class OnPolicy:
    """What of a step the student writes.

    Attributes:
        options: from the recipe.
        aligner: has the tokenizers and chat templates of both models.
    """

    options: OnPolicyOptions
    aligner: DocumentAligner

    def stream(
        self,
        ctx: StageContext,
        config: TrainingConfig,
        text: WindowSource,
        source: BlockSource,
        student: ScoringModel,
    ) -> WindowSource:
        """The windows of every step, once the student is loaded and, if it is to be, split over the processes.

        Args:
            ctx: the stage's context.
            config: optimisation options.
            text: the windows of the data.
            source: where these come from; has the documents, and the exchange between the processes.
            student: in training.
        """
        options = self.options
        rollouts = options.rollouts(config.batch_windows)
        if not rollouts:
            return text
        seed = int(generator(config.seed, _PROMPTS).integers(2**31))  # prompts and text come in orders of their own
        prompts = PromptStream(
            source.documents,
            len(source.documents.weights),
            ReadingOrder(source.documents.weights, source.documents.streamed, seed, config.shuffle_documents),
            self.aligner,
            lengths=options.prompt_tokens,
            room=config.window_tokens - options.max_new_tokens,
            reference_tokens=options.max_new_tokens,
            seed=seed,
        )
        author = Author(
            student,
            self.aligner.views[1],
            options,
            config.seed,
            ctx.rank,
            ctx.world_size,
            source.exchange,
            sharded=ctx.resources.get("zero", {}).get("student", 0) == 3,
            should_stop=ctx.should_stop,
        )
        return OnPolicyStream(
            ctx=ctx,
            text=text,
            prompts=prompts,
            author=author,
            aligner=RolloutAligner.of(self.aligner),
            guards=Guards(options.guards),
            rollouts=rollouts,
            record_every=config.log_every,
            stop_on_breach=options.guards.on_breach == "stop",
        )

    @staticmethod
    def publish(ctx: StageContext) -> None:
        """Put the sample of rollouts beside the trained model."""
        if ctx.rank == 0 and (ctx.work / record.NAME).exists():
            shutil.copy2(ctx.work / record.NAME, ctx.out / record.NAME)
