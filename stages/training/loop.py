"""The training loop: windows in, checkpoints and a training curve out. Knows nothing of what the losses are."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from stages.stage import StageContext, StageError, StageInterrupted
from stages.training import checkpoint, curve
from stages.training.backend import Backend
from stages.training.batches import BatchSource
from stages.training.config import TrainingConfig
from stages.training.optimiser import learning_rate_factor
from stages.training.random import generator
from stages.training.step import Stepper


@dataclass
class Trainer:
    """Walks the data from the newest checkpoint, or the start, to the last step."""

    ctx: StageContext
    config: TrainingConfig
    batches: BatchSource
    backend: Backend
    stepper: Stepper
    device: torch.device
    _idle: set[str] = field(default_factory=set, init=False)

    def run(self) -> None:
        """Train to the last step.

        Raises:
            StageError: the data or the checkpoint does not fit, or the gradient is not finite.
            StageInterrupted: asked to stop; a checkpoint of the last finished step is saved.
        """
        first = step = self._resume()
        started, tokens = time.monotonic(), 0.0
        while step < self.config.steps:
            if self._stop_requested():
                if step > first:
                    self._save(step)
                raise StageInterrupted(f"stopped after step {step:,} of {self.config.steps:,}")
            logged = (step + 1) % self.config.log_every == 0 or step + 1 == self.config.steps
            self._seed_dropout(step)
            values = self.stepper.take(self.batches.take(), step, measure=logged)
            values["learning_rate"] = self.config.learning_rate * learning_rate_factor(step, self.config)
            step, tokens = step + 1, tokens + values.pop("tokens")
            self._note_idle(step, values)
            if logged:
                seconds = time.monotonic() - started
                values["tokens_per_second"] = tokens / seconds
                self._report(step, values, seconds / (step - first) * (self.config.steps - step))
            if step % self.config.checkpoint_every == 0 or step == self.config.steps:
                # The last one too: an interrupted export goes on from it without training again.
                self._save(step)

    def _seed_dropout(self, step: int) -> None:
        """Make what a step draws a function of seed, step and process, so that a resumed run draws the same."""
        torch.manual_seed(int(generator(self.config.seed, step, self.ctx.rank).integers(2**63)))

    def _note_idle(self, step: int, values: Mapping[str, float]) -> None:
        """Say once of each loss that a batch gave it nothing to compare; the curve has its units of every step."""
        for name in self.stepper.names:
            if not values[f"{name}.units"] and name not in self._idle:
                self._idle.add(name)
                self.ctx.progress(f"note: {name} found nothing to compare in the batch of step {step:,}")

    def _stop_requested(self) -> bool:
        # Every process must leave at the same step, or the next collective would wait for ever.
        flag = torch.tensor([float(self.ctx.should_stop())], device=self.device)
        return bool(self.backend.sum(flag) > 0)

    def _report(self, step: int, values: dict[str, float], remaining: float) -> None:
        if self.ctx.rank != 0:
            return
        self.ctx.metrics.log(step, **values, peak_memory_mib=_peak_memory_mib(self.device))
        curve.append(self.ctx.work, step, values)
        names = self.stepper.names
        parts = (
            f" ({', '.join(f'{name} {values[name]:.4g}' for name in names if name in values)})"
            if len(names) > 1
            else ""
        )
        position = f"step {step:,}/{self.config.steps:,}  loss {values['loss']:.4f}{parts}"
        speed = f"{values['tokens_per_second']:,.0f} tok/s"
        self.ctx.progress(f"{position}  {speed}  ETA {_duration(remaining)}")

    def _save(self, step: int) -> None:
        root = self.ctx.work / "ckpt"
        directory = root / f"step-{step}"
        if self.ctx.rank == 0:
            checkpoint.begin(root, step)
        self._barrier()
        self.backend.save(directory)
        self._barrier()
        if self.ctx.rank == 0:
            state = {"step": step, "data": self.batches.state(), "balance": self.stepper.state()}
            checkpoint.complete(directory, state | self._layout())
            checkpoint.prune(root, self.config.keep_checkpoints)
        self._barrier()

    def _layout(self) -> dict[str, int]:
        return {"world_size": self.ctx.world_size, "zero": self.ctx.resources.get("zero", {}).get("student", 0)}

    def _resume(self) -> int:
        found = checkpoint.latest(self.ctx.work / "ckpt", self.ctx.progress)
        if found is None:
            if self.ctx.rank == 0:
                curve.truncate(self.ctx.work, 0)
            return 0
        directory, state = found
        layout = self._layout()
        if any(state[name] != layout[name] for name in layout):
            raise StageError(
                f"{directory} was saved by {state['world_size']} processes with ZeRO {state['zero']}, but this attempt "
                f"has {layout['world_size']} with ZeRO {layout['zero']}: use the saved layout under resources, or "
                f"start this stage again by removing {directory.parent}"
            )
        self.backend.load(directory)
        self.batches.restore(state["data"])
        self.stepper.restore(state["balance"], self.device)
        if self.ctx.rank == 0:
            curve.truncate(self.ctx.work, state["step"])
            self.ctx.progress(f"resuming after step {state['step']:,}/{self.config.steps:,}")
        return state["step"]

    def _barrier(self) -> None:
        self.backend.sum(torch.zeros(1, device=self.device))


def _peak_memory_mib(device: torch.device) -> float:
    """Most memory so far, in MiB: of the accelerator's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}m{seconds:02d}s"
