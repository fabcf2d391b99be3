"""What a training step measured, on its way from the device to the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from stages.training.monitoring.timeline import Timeline

CONTENTS = "contents/"
"""What a step's names of facts about its batches (tokens, bytes) start with."""


class StepRecord:
    """The numbers of one step, reduced over all processes.

    They are copied in the device's own time: until the record is read, the host may submit the next step, and the
    device never runs dry for a log line. On the CPU they are there at once.

    Args:
        numbers: tensors on one device, by name.
        evaluate: makes what there is to log from ``numbers``, as float64 tensors on the CPU.
        timeline: of the step, stopped.
    """

    def __init__(
        self,
        numbers: Mapping[str, Tensor],
        evaluate: Callable[[dict[str, Tensor]], dict[str, float]],
        timeline: Timeline,
    ) -> None:
        self._shapes = {name: value.shape for name, value in numbers.items()}
        self._evaluate = evaluate
        self._timeline = timeline
        self._flat = torch.cat([value.detach().double().flatten() for value in numbers.values()])
        self._copied: torch.cuda.Event | None = None
        if self._flat.is_cuda:
            host = torch.empty(self._flat.shape, dtype=torch.float64, pin_memory=True)
            self._flat = host.copy_(self._flat, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> dict[str, float]:
        """What there is to log; waits until the device has finished the step.

        Raises:
            StageError: no objective had anything to compare in the whole step.
        """
        return self._evaluate(self._numbers())

    def contents(self) -> dict[str, Tensor]:
        """What the step's batches held, in all processes together (``contents.contents``), float64; waits likewise."""
        return {
            name.removeprefix(CONTENTS): value for name, value in self._numbers().items() if name.startswith(CONTENTS)
        }

    def seconds(self) -> dict[str, float]:
        """Seconds that this process spent in each phase of the step; waits likewise."""
        return self._timeline.seconds()

    def _numbers(self) -> dict[str, Tensor]:
        if self._copied is not None:
            self._copied.synchronize()
        parts = self._flat.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
