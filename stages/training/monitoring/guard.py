"""Watches every step's numbers, and decides which steps must be taken back."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.stage import StageError
from stages.training.backends import process_group

HISTORY = 50
"""Steps whose median is what a spike is compared with."""
FEWEST = 10
"""Steps before which nothing is called a spike."""
WATCHED = ("gradient_norm", "loss")


@dataclass(frozen=True)
class SkippedBatch:
    """A batch that training goes on without.

    Attributes:
        batch: its number in the order of the data, from 0.
        step: the optimiser step that it was taken back from, from 1.
        reason: what was wrong, for a person.
    """

    batch: int
    step: int
    reason: str


class Guard:
    """Judges steps in their order; every process sees the same numbers, and so comes to the same verdict.

    Args:
        max_rollbacks: how many steps may be taken back.
        spike_factor: how many times its running median a gradient norm or a loss may be; None for no limit.

    Attributes:
        skipped: the batches that training goes on without.
    """

    def __init__(self, max_rollbacks: int, spike_factor: float | None) -> None:
        self._max_rollbacks = max_rollbacks
        self._spike_factor = spike_factor
        self._history: dict[str, deque[float]] = {name: deque(maxlen=HISTORY) for name in WATCHED}
        self.skipped: list[SkippedBatch] = []

    def judge(self, values: Mapping[str, float], names: Iterable[str]) -> str | None:
        """Why the step with these ``values`` must be taken back; None if it may stay, which the guard then remembers.

        Args:
            values: what the step logs.
            names: of the losses.
        """
        broken = [name for name in names if not math.isfinite(values.get(name, 0.0))]
        if not math.isfinite(values["gradient_norm"]):
            return "the gradient is not finite" + (f", nor is {' or '.join(broken)}" if broken else "")
        if broken or not math.isfinite(values["loss"]):
            return f"{' and '.join(broken) or 'the loss'} is not finite"
        for name, history in self._history.items():
            usual = statistics.median(history) if len(history) >= FEWEST else math.inf
            if self._spike_factor is not None and usual > 0 and values[name] > self._spike_factor * usual:
                return f"{name} is {values[name]:.4g}, {values[name] / usual:.3g} times its running median"
        for name, history in self._history.items():
            history.append(values[name])
        return None

    def skip(self, batch: int, step: int, reason: str) -> None:
        """Note that training goes on without ``batch``.

        Raises:
            StageError: ``max_rollbacks`` batches have been left out before.
        """
        if len(self.skipped) >= self._max_rollbacks:
            steps = ", ".join(f"{each.step:,}" for each in self.skipped)
            before = f" (the batches of steps {steps} were left out before: max_rollbacks)" if steps else ""
            raise StageError(f"step {step:,}: {reason}; lower learning_rate or check the data{before}")
        self.skipped.append(SkippedBatch(batch, step, reason))

    def skips(self, batch: int) -> bool:
        """Whether training goes on without ``batch``."""
        return any(each.batch == batch for each in self.skipped)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, as JSON values."""
        return {
            "history": {name: list(history) for name, history in self._history.items()},
            "skipped": [asdict(each) for each in self.skipped],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` gave."""
        for name, history in self._history.items():
            history.clear()
            history.extend(state["history"][name])
        self.skipped = [SkippedBatch(**each) for each in state["skipped"]]


def not_finite(parameters: Iterable[nn.Parameter]) -> Tensor:
    """1 if this process holds a parameter, or a shard of one, with a NaN or an infinity, else 0: float64 [1]."""
    held = [each for parameter in parameters if (each := _held(parameter)).numel()]
    largest = nn.utils.get_total_norm(held, norm_type=torch.inf) if held else torch.zeros(())
    return (~largest.isfinite()).double().view(1)


def _held(parameter: nn.Parameter) -> Tensor:
    """What this process holds of a parameter; the last shards of ZeRO-3 end in memory that nobody has written."""
    shard = getattr(parameter, "ds_tensor", None)
    if shard is None:
        return parameter.detach()
    before = process_group.rank() * shard.numel()
    return shard.detach().flatten()[: max(0, parameter.ds_numel - before)]
