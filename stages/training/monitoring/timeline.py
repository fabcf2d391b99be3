"""How long a step spends in each of its phases, without making the host wait for an accelerator."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import ClassVar

import torch

PHASES = ("teacher", "forward", "loss", "backward", "optimiser")
"""What a step goes through: the teacher's scores; the student's body and its token scores; the objectives, with the sum
of their statistics over the processes; gradients, with their exchange under ZeRO; their exchange without ZeRO, clipping
and update."""


class Timeline:
    """Marks when a step goes from one phase to the next; a phase may come more than once.

    On an accelerator the marks are events in its stream, so a phase's time is the device's: that of the kernels the
    phase started, with the gaps between them.

    Args:
        device: that does the work.

    Attributes:
        clock: tells the seconds on a CPU; of the wall, unless somebody sets another one.
    """

    clock: ClassVar[Callable[[], float]] = staticmethod(time.perf_counter)

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def enter(self, phase: str) -> None:
        """The phase before ends and ``phase`` begins."""
        self._marks.append((phase, self._now()))

    def stop(self) -> None:
        """The last phase ends."""
        self.enter("")

    def seconds(self) -> dict[str, float]:
        """Seconds of every phase, those that never came included; waits until the device has passed the last mark."""
        spent: dict[str, float] = defaultdict(float, {phase: 0.0 for phase in PHASES})
        if self._on_gpu and self._marks:
            self._marks[-1][1].synchronize()
        for (phase, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            spent[phase] += start.elapsed_time(end) / 1000 if self._on_gpu else end - start
        return dict(spent)

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
