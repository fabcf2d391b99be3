"""The training loop: windows in, checkpoints and a training curve out. Knows nothing of what the losses are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from losses.balance import gradmag_weights
from stages.stage import StageContext, StageError, StageInterrupted
from stages.training import checkpoint, curve
from stages.training.backend import Backend
from stages.training.config import TrainingConfig
from stages.training.data import Batch, SideBatch, WindowStream, micro_batches
from stages.training.models import ScoringModel, Signals, to_device
from stages.training.objectives import Objective
from stages.training.optimiser import learning_rate_factor


@dataclass
class Trainer:
    """One training stage's moving parts, and the step that ties them together.

    Attributes:
        teacher: scores the teacher's side of every batch; None when no objective asks for it.
        balanced: weigh the losses so that their gradients at the head's input have equal norms (GradMag); a step uses
            the norms of the step before, so that the weights are the same for all its micro-batches and processes.
    """

    ctx: StageContext
    config: TrainingConfig
    stream: WindowStream
    backend: Backend
    objectives: Sequence[Objective]
    teacher: ScoringModel | None
    device: torch.device
    micro_batch: int
    balanced: bool = False
    squared_norms: Tensor | None = None

    def run(self) -> None:
        """Train from the newest whole checkpoint, or from the start, to the last step."""
        step = self._resume()
        started, start_step, tokens = time.monotonic(), step, 0
        while step < self.config.steps:
            if self._stop_requested():
                self._save(step)
                raise StageInterrupted(f"stopped after step {step}")
            values, step_tokens = self._step(step)
            step, tokens = step + 1, tokens + step_tokens
            if step % self.config.log_every == 0 or step == self.config.steps:
                seconds = time.monotonic() - started
                values["tokens_per_second"] = tokens / seconds
                self._report(step, values, seconds / (step - start_step) * (self.config.steps - step))
            if step % self.config.checkpoint_every == 0 and step < self.config.steps:
                self._save(step)
        # The last checkpoint lets an interrupted export go on without training again.
        if step > start_step:
            self._save(step)

    def _step(self, number: int) -> tuple[dict[str, float], int]:
        windows = self.stream.take(self.config.batch_windows)
        batches = [
            Batch(
                to_device(b.student, self.device),
                b.teacher and to_device(b.teacher, self.device),
                b.num_chunks,
            )
            for b in micro_batches(windows, self.micro_batch, self.ctx.rank, self.ctx.world_size)
        ]
        teachers = [self._teach(batch.teacher) for batch in batches]
        statistics = self._global_statistics(batches, teachers)
        weights = self._weights(batches, teachers, statistics)
        totals = torch.zeros(len(self.objectives), dtype=torch.float64, device=self.device)
        squares = torch.zeros_like(totals)
        for index, (batch, teacher) in enumerate(zip(batches, teachers, strict=True)):
            student = self.backend.forward(batch.student)
            losses = self._losses(batch, teacher, student, statistics)
            totals += torch.stack([loss.detach().double() for loss in losses])
            if self.balanced:
                squares += self._head_gradient_squares(losses, student)
            combined = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
            self.backend.backward(combined, last=index == len(batches) - 1)
        norm = self.backend.step(number)
        summed = self.backend.sum(torch.cat([totals, squares, totals.new_tensor([sum(_tokens(b) for b in batches)])]))
        count = len(self.objectives)
        if self.balanced:
            self.squared_norms = summed[count : 2 * count]
        values = {objective.name: float(value) for objective, value in zip(self.objectives, summed, strict=False)}
        values["loss"] = float(sum(w * v for w, v in zip(weights, summed[:count], strict=True)))
        values |= {f"weight.{o.name}": float(w) for o, w in zip(self.objectives, weights, strict=True) if self.balanced}
        values |= {"gradient_norm": norm, "learning_rate": self._learning_rate(number)}
        return values, int(summed[-1])

    def _teach(self, batch: SideBatch | None) -> Signals | None:
        if self.teacher is None or batch is None:
            return None
        with torch.no_grad():
            return self.teacher(batch)

    def _global_statistics(self, batches: Sequence[Batch], teachers: Sequence[Signals | None]) -> list[Tensor]:
        local = [
            sum(objective.statistics(batch, teacher) for batch, teacher in zip(batches, teachers, strict=True))
            for objective in self.objectives
        ]
        summed = self.backend.sum(torch.cat(local)).split([len(part) for part in local])
        for objective, part in zip(self.objectives, summed, strict=True):
            if part[0] == 0:
                raise StageError(f"loss {objective.name}: a whole batch has no unit to compare; raise batch_windows")
        return list(summed)

    def _losses(
        self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Sequence[Tensor]
    ) -> list[Tensor]:
        """This micro-batch's share of every loss: its total over the global count of units."""
        return [
            objective.loss(batch, teacher, student, part).total / part[0].float()
            for objective, part in zip(self.objectives, statistics, strict=True)
        ]

    def _weights(
        self, batches: Sequence[Batch], teachers: Sequence[Signals | None], statistics: list[Tensor]
    ) -> Tensor:
        if not self.balanced:
            return torch.tensor([objective.weight for objective in self.objectives], device=self.device)
        if self.squared_norms is None:
            squares = torch.zeros(len(self.objectives), dtype=torch.float64, device=self.device)
            for batch, teacher in zip(batches, teachers, strict=True):
                student = self.backend.forward(batch.student)
                squares += self._head_gradient_squares(self._losses(batch, teacher, student, statistics), student)
            self.squared_norms = self.backend.sum(squares)
        return gradmag_weights(self.squared_norms).float()

    @staticmethod
    def _head_gradient_squares(losses: Sequence[Tensor], student: Signals) -> Tensor:
        gradients = [torch.autograd.grad(loss, student.hidden, retain_graph=True)[0] for loss in losses]
        return torch.stack([gradient.double().square().sum() for gradient in gradients])

    def _learning_rate(self, number: int) -> float:
        return self.config.learning_rate * learning_rate_factor(number, self.config)

    def _stop_requested(self) -> bool:
        # Every process must leave at the same step, or the next collective would wait for ever.
        flag = torch.tensor([float(self.ctx.should_stop())], device=self.device)
        return bool(self.backend.sum(flag) > 0)

    def _report(self, step: int, values: dict[str, float], remaining: float) -> None:
        if self.ctx.rank != 0:
            return
        self.ctx.metrics.log(step, **values)
        curve.append(self.ctx.work, step, values)
        terms = " ".join(f"{objective.name} {values[objective.name]:.4f}" for objective in self.objectives)
        speed = f"{values['tokens_per_second']:,.0f} tok/s"
        self.ctx.progress(f"step {step:,}/{self.config.steps:,}  {terms}  {speed}  ETA {remaining / 60:.1f} min")

    def _save(self, step: int) -> None:
        root = self.ctx.work / "ckpt"
        directory = root / f"step-{step}"
        if self.ctx.rank == 0:
            checkpoint.begin(root, step)
        self._barrier()
        self.backend.save(directory)
        self._barrier()
        if self.ctx.rank == 0:
            balance = None if self.squared_norms is None else self.squared_norms.tolist()
            checkpoint.complete(
                directory,
                {
                    "step": step,
                    "data": self.stream.state(),
                    "balance": balance,
                    "world_size": self.ctx.world_size,
                    "zero": self.ctx.resources.get("zero", {}).get("student", 0),
                },
            )
            checkpoint.prune(root, self.config.keep_checkpoints)
        self._barrier()

    def _resume(self) -> int:
        found = checkpoint.latest(self.ctx.work / "ckpt", self.ctx.progress)
        if found is None:
            curve.truncate(self.ctx.work, 0)
            return 0
        directory, state = found
        layout = (self.ctx.world_size, self.ctx.resources.get("zero", {}).get("student", 0))
        if layout != (state["world_size"], state["zero"]):
            raise StageError(
                f"{directory} was saved by {state['world_size']} processes with ZeRO {state['zero']}, but this attempt "
                f"has {layout[0]} with ZeRO {layout[1]}: use the saved layout under resources, or start this stage "
                f"again by removing {directory.parent}"
            )
        self.backend.load(directory)
        self.stream.restore(state["data"])
        if state["balance"] is not None:
            self.squared_norms = torch.tensor(state["balance"], dtype=torch.float64, device=self.device)
        if self.ctx.rank == 0:
            curve.truncate(self.ctx.work, state["step"])
            self.ctx.progress(f"resuming after step {state['step']:,}/{self.config.steps:,}")
        return state["step"]

    def _barrier(self) -> None:
        self.backend.sum(torch.zeros(1, device=self.device))


def _tokens(batch: Batch) -> int:
    return int(batch.student.attention.sum())
