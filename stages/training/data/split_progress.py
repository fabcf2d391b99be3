"""How far the training is when a block of documents is begun, for what moves over the steps and is made ahead of them.

Blocks are made in worker processes before it is known how many windows those before them have. So their number is
estimated once, from the documents that the training reads first; the estimate is a function of the data, the options
and the seed, and a training that goes on after a stop makes the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from stages.training.config import TrainingConfig
from stages.training.data.blocks import WindowMaker
from stages.training.data.order import ReadingOrder
from stages.training.data.windows import Document

_SAMPLE_DOCUMENTS = 64


@dataclass
class ShareDone:
    """Epoch, block -> share of the training's steps that are done when the block is begun, about; below 1.

    Attributes:
        documents, order: what is read, and when.
        maker: prepared by the time that it is first asked for.
        config: says how many steps there are, and what a step takes.
    """

    documents: Sequence[Document]
    maker: WindowMaker
    order: ReadingOrder
    config: TrainingConfig

    def __call__(self, epoch: int, block: int) -> float:
        readings = (epoch + block / self.order.blocks(epoch)) * self.order.mean_readings
        return min(readings / self._readings, 1 - 1 / self.config.steps)

    @cached_property
    def _readings(self) -> float:
        """Readings of documents that the whole training takes, about."""
        numbers = self.order.readings(0, 0).numbers.tolist()[:_SAMPLE_DOCUMENTS]
        windows = [
            window for number in numbers for window in self.maker.make(self.documents[number], number, 0, 0.0).windows
        ]
        by_tokens = self.config.batch_tokens is not None
        size = sum(window.tokens for window in windows) if by_tokens else len(windows)
        wanted = self.config.steps * (self.config.batch_tokens if by_tokens else self.config.batch_windows)
        return max(1.0, wanted * len(numbers) / max(size, 1))
