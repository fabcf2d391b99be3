"""The training loop: windows in, checkpoints and a training curve out. Knows nothing of what the losses are."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.stage import StageContext, StageError, StageInterrupted
from stages.training.backends.backend import Backend
from stages.training.config import TrainingConfig
from stages.training.data.batches import BatchSource
from stages.training.held_out import HeldOut
from stages.training.monitoring import curve
from stages.training.monitoring.guard import Guard, not_finite
from stages.training.monitoring.reporter import Reporter
from stages.training.monitoring.step_record import StepRecord
from stages.training.monitoring.telemetry import WAITED, Telemetry
from stages.training.random import generator
from stages.training.saving import checkpoint
from stages.training.step import Stepper

STOP = "stop"
"""Fact of a step beside its contents: whether a process was asked to stop."""
LAG = {"cuda": 1}
"""Steps that run while the one before them is looked at, by kind of device: none where there is no queue to fill."""


@dataclass(frozen=True)
class _Taken:
    """A step (from 1) that has been submitted, and not yet looked at; ``batch`` is the number of its batch."""

    step: int
    batch: int
    logged: bool
    record: StepRecord
    measurements: Mapping[str, float]


@dataclass
class Trainer:
    """Walks the data from the newest checkpoint, or the start, to the last step.

    On an accelerator the numbers of a step are looked at while the next one runs, so that the device never waits for
    the host; before a checkpoint all are looked at. A step that the guard rejects is taken back: the loop returns to
    the newest checkpoint and goes on without the batch.

    Attributes:
        trained: the parameters that learn.
        held_out: text to choose the best checkpoint by; None to keep the last.
        ahead: whether a step may be submitted while the one before it is looked at: not where the student writes its
            batch, for which one that a bad step has broken is no use.
    """

    ctx: StageContext
    config: TrainingConfig
    batches: BatchSource
    backend: Backend
    stepper: Stepper
    device: torch.device
    trained: Sequence[nn.Parameter]
    guard: Guard
    telemetry: Telemetry
    reporter: Reporter
    held_out: HeldOut | None = None
    ahead: bool = True
    _step: int = field(default=0, init=False)
    _batch: int = field(default=0, init=False)
    _saved: int = field(default=-1, init=False)
    _pending: deque[_Taken] = field(default_factory=deque, init=False)
    _asked: bool = field(default=False, init=False)
    _best: dict[str, float] | None = field(default=None, init=False)

    def run(self) -> dict[str, Any]:
        """Train to the last step, and leave the student as it shall be published.

        Returns:
            What is to be said of the training beside its curve, as JSON values.

        Raises:
            StageError: the data or the checkpoint does not fit, or more steps had to be taken back than may be.
            StageInterrupted: asked to stop; a checkpoint of the last finished step is saved.
        """
        self._check_disk()
        if not self._resume() and self.config.max_rollbacks and self._is_sound():
            self._save()  # where a rollback of the first steps leads; and if the disk is full, better now than later
        self.telemetry.begin()
        while self._step < self.config.steps:
            asked = self.ctx.should_stop()
            # Several processes must leave at the same step, or the next collective would wait for ever.
            if self._asked if self.ctx.world_size > 1 else asked:
                self._leave()
            try:
                self._take(asked)
            except StageInterrupted:  # every process was, while the student wrote the batch
                self._leave()
            last = self._step == self.config.steps
            # The last one too: an interrupted export goes on from it without training again.
            saves = last or self._step % self.config.checkpoint_every == 0
            evaluates = self.held_out is not None and (last or self._step % self.held_out.every == 0)
            at_once = saves or evaluates or not self.ahead
            settled = self._settle(lag=0 if at_once else LAG.get(self.device.type, 0))
            if settled and (saves or evaluates) and self._is_sound():
                improved = evaluates and self._evaluate()
                if saves or improved:
                    self._save()
        self.reporter.compare_memory()
        if self.held_out is not None and self._best["step"] != self._step:
            self._load_best()
        if self._asked_anywhere(self.ctx.should_stop()):
            raise StageInterrupted("stopped after the last step, before the model was written")
        return self._account()

    def _take(self, asked: bool) -> None:
        """Submit the next step; ``asked`` says whether this process was asked to stop."""
        while self.guard.skips(self._batch):
            self.batches.take()
            self._batch += 1
        started = time.monotonic()
        batches = self.batches.take()
        counts = {WAITED: time.monotonic() - started, STOP: float(asked)}
        self._seed_dropout(self._step)
        logged = (self._step + 1) % self.config.log_every == 0 or self._step + 1 == self.config.steps
        record = self.stepper.take(batches, self._step, measure=logged, counts=counts)
        self._pending.append(_Taken(self._step + 1, self._batch, logged, record, self.batches.measurements()))
        self._step += 1
        self._batch += 1

    def _settle(self, lag: int) -> bool:
        """Look at the submitted steps but the last ``lag``; False if one of them was taken back, and the rest with it.

        What is decided here comes from sums over all processes: each decides the same at the same step.
        """
        while len(self._pending) > lag:
            taken = self._pending.popleft()
            values = taken.record.read()
            self._asked = bool(taken.record.contents()[STOP] > 0)
            reason = self.guard.judge(values, self.stepper.names)
            if reason is not None:
                self._roll_back(taken.step, taken.batch, reason)
                return False
            self.telemetry.add(taken.record)
            self.reporter.note_idle(taken.step, values)
            if taken.logged:
                self.reporter.report(taken.step, {**values, **taken.measurements})
        return True

    def _roll_back(self, step: int, batch: int, reason: str) -> None:
        """Return to the newest checkpoint, and go on without ``batch``, which ``step`` had."""
        self.guard.skip(batch, step, reason)
        self._pending.clear()
        found = checkpoint.latest(self._root, self.ctx.progress)
        if found is None:
            raise StageError(f"step {step}: {reason}, and no checkpoint is left to go back to; start again")
        skipped = self.guard.skipped
        self._restore(*found)
        self.guard.skipped = skipped
        self.ctx.progress(
            f"note: step {step:,}: {reason}; back to step {self._step:,}, to go on without that step's batch "
            f"({len(skipped)} of at most {self.config.max_rollbacks})"
        )

    def _asked_anywhere(self, asked: bool) -> bool:
        return bool(self.backend.sum(torch.tensor([float(asked)], device=self.device)) > 0)

    def _leave(self) -> None:
        if self._settle(lag=0) and self._step > self._saved and self._is_sound():
            self._save()
        raise StageInterrupted(f"stopped after step {self._step:,} of {self.config.steps:,}")

    def _seed_dropout(self, step: int) -> None:
        """Make what a step draws a function of seed, step and process, so that a resumed run draws the same."""
        torch.manual_seed(int(generator(self.config.seed, step, self.ctx.rank).integers(2**63)))

    def _evaluate(self) -> bool:
        """Measure the student on held-out text; whether it is better than ever before."""
        with self.telemetry.apart():
            bits = self.held_out.bits_per_byte()
        if not math.isfinite(bits):
            raise StageError(
                f"step {self._step:,}: the student gives data.eval no finite probability; keep_best has no use"
            )
        self.reporter.log(self._step, {"eval.bits_per_byte": bits})
        if self._best is not None and not bits < self._best["bits_per_byte"]:
            return False
        self._best = {"step": self._step, "bits_per_byte": bits}
        return True

    def _account(self) -> dict[str, Any]:
        notes: dict[str, Any] = {}
        if self.guard.skipped:
            notes["skipped_batches"] = [asdict(each) for each in self.guard.skipped]
        if self._best is not None:
            notes["best"] = self._best
        return notes

    @property
    def _root(self) -> Path:
        return self.ctx.work / "ckpt"

    def _save(self) -> None:
        """Save the last step's state."""
        with self.telemetry.apart():
            directory = checkpoint.directory(self._root, self._step)
            if self.ctx.rank == 0:
                checkpoint.begin(self._root, self._step)
            self._barrier()
            self.backend.save(directory)
            self._barrier()
            if self.ctx.rank == 0:
                origin = {"layout": self._layout(), "options": checkpoint.options(self.config)}
                checkpoint.complete(directory, self._state() | origin)
                checkpoint.prune(self._root, self._step, self.config.keep_checkpoints)
            self._barrier()
            self._saved = self._step

    def _check_disk(self) -> None:
        kept = self.config.keep_checkpoints + (self.held_out is not None)
        checkpoint.check_space(self._root, self.backend.saved_bytes(), kept)

    def _load_best(self) -> None:
        directory = checkpoint.directory(self._root, self._best["step"])
        if problem := checkpoint.damage(directory):
            raise StageError(
                f"the best checkpoint, {directory}, cannot be published: {problem}; remove it and all newer ones to "
                "train again from the one before"
            )
        self.backend.load(directory)

    def _is_sound(self) -> bool:
        """Whether the weights are finite: there is no use in measuring or saving others, and the step is taken back."""
        with self.telemetry.apart():
            if bool(self.backend.sum(not_finite(self.trained)) == 0):
                return True
            if self._step == 0:
                raise StageError("the student has weights that are not finite before the first step")
            self._roll_back(self._step, self._batch - 1, "the step left weights that are not finite")
            return False

    def _state(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "batch": self._batch,
            "data": self.batches.state(),
            "balance": self.stepper.state(),
            "guard": self.guard.state(),
            "best": self._best,
        }

    def _layout(self) -> str:
        """Who shares the student, for a person: a checkpoint may be gone on from by others."""
        zero = self.ctx.resources.get("zero", {}).get("student", 0)
        processes = f"{self.ctx.world_size} process{'es' * (self.ctx.world_size > 1)}"
        return processes + (f" with ZeRO {zero}" if zero else "")

    def _resume(self) -> bool:
        """Go on from the newest checkpoint; False if there is none."""
        found = checkpoint.latest(self._root, self.ctx.progress)
        if found is None:
            if self.ctx.rank == 0:
                curve.truncate(self.ctx.work, 0)
            return False
        directory, state = found
        checkpoint.check_origin(directory, state["options"], self.config)
        if state["layout"] != self._layout():
            self.ctx.progress(f"note: saved by {state['layout']}, the training goes on in {self._layout()}")
        self._restore(directory, state)
        self.ctx.progress(f"resuming after step {self._step:,}/{self.config.steps:,}")
        return True

    def _restore(self, directory: Path, state: Mapping[str, Any]) -> None:
        self.backend.load(directory)
        self.batches.restore(state["data"])
        self.stepper.restore(state["balance"], self.device)
        self.guard.restore(state["guard"])
        self._best = state["best"]
        self._step, self._batch, self._saved = state["step"], state["batch"], state["step"]
        if self.ctx.rank == 0:
            curve.truncate(self.ctx.work, self._step)

    def _barrier(self) -> None:
        self.backend.sum(torch.zeros(1, device=self.device))
