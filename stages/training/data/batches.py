"""What the training loop takes at every step: this process's micro-batches of the next global batch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from stages.training.data.batch import Batch, to_device
from stages.training.data.layout import micro_batches
from stages.training.data.stream import WindowStream


@dataclass
class BatchSource:
    """Takes windows from a stream and lays them out for one process.

    Attributes:
        stream: the windows, in the one order that all processes share.
        batch_windows: windows in one step, over all processes; None for as many as hold ``batch_tokens``.
        micro_batch: rows in one forward pass of one process; None for all of them.
        rank, world_size: this process among all.
        device: where the batches go.
        batch_tokens: tokens in one step, over all processes, of the longer side of every window.
        row_tokens: most tokens of a row that windows are packed into; None for a row a window.
        waited: seconds that ``take`` has taken in all.
    """

    stream: WindowStream
    batch_windows: int | None
    micro_batch: int | None
    rank: int
    world_size: int
    device: torch.device
    batch_tokens: int | None = None
    row_tokens: int | None = None
    waited: float = field(default=0.0, init=False)

    def take(self) -> list[Batch]:
        """The micro-batches of the next step.

        Raises:
            StageError: the data does not make one batch.
        """
        started = time.monotonic()
        by_tokens = self.batch_windows is None
        windows = self.stream.take_tokens(self.batch_tokens) if by_tokens else self.stream.take(self.batch_windows)
        batches = micro_batches(windows, self.micro_batch, self.rank, self.world_size, self.row_tokens)
        moved = [
            replace(
                batch,
                student=to_device(batch.student, self.device),
                teacher=None if batch.teacher is None else to_device(batch.teacher, self.device),
            )
            for batch in batches
        ]
        self.waited += time.monotonic() - started
        return moved

    def measurements(self) -> dict[str, float]:
        """What there is to log of the windows of the step that was taken last."""
        return self.stream.measurements()

    def state(self) -> dict[str, Any]:
        """Where the next step reads on, as JSON values; the same for every process."""
        return self.stream.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` gave."""
        self.stream.restore(state)
