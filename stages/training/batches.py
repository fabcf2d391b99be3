"""What the training loop takes at every step: this process's micro-batches of the next global batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from stages.training.batch import Batch, to_device
from stages.training.layout import micro_batches
from stages.training.stream import WindowStream


@dataclass(frozen=True)
class BatchSource:
    """Takes windows from a stream and lays them out for one process.

    Attributes:
        stream: the windows, in the one order that all processes share.
        batch_windows: windows in one step, over all processes.
        micro_batch: windows in one forward pass of one process.
        rank, world_size: this process among all.
        device: where the batches go.
    """

    stream: WindowStream
    batch_windows: int
    micro_batch: int
    rank: int
    world_size: int
    device: torch.device

    def take(self) -> list[Batch]:
        """The micro-batches of the next step.

        Raises:
            StageError: the data does not make one batch.
        """
        windows = self.stream.take(self.batch_windows)
        return [
            Batch(
                student=to_device(batch.student, self.device),
                teacher=None if batch.teacher is None else to_device(batch.teacher, self.device),
                num_chunks=batch.num_chunks,
                teacher_number=batch.teacher_number,
            )
            for batch in micro_batches(windows, self.micro_batch, self.rank, self.world_size)
        ]

    def state(self) -> dict[str, Any]:
        """Where the next step reads on, as JSON values; the same for every process."""
        return self.stream.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` gave."""
        self.stream.restore(state)
