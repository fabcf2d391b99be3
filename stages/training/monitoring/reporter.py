"""What of a training a person sees: lines of progress, and the numbers of the training curve and of MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stages.stage import StageContext
from stages.training.config import TrainingConfig
from stages.training.memory import memory_report
from stages.training.monitoring import curve
from stages.training.monitoring.guard import Guard
from stages.training.monitoring.telemetry import Telemetry
from stages.training.optimiser import learning_rate_factor


@dataclass
class Reporter:
    """Reports of steps, from 1; the first process writes, and the others are silent.

    Attributes:
        names: of the losses.
        peak_rates: the optimiser's groups -> peak learning rate.
        telemetry: of the steps since the last report.
        guard: knows which batches training goes on without.
    """

    ctx: StageContext
    config: TrainingConfig
    names: Sequence[str]
    peak_rates: Mapping[str, float]
    telemetry: Telemetry
    guard: Guard
    _idle: set[str] = field(default_factory=set, init=False)

    def note_idle(self, step: int, values: Mapping[str, float]) -> None:
        """Say once of each loss that a batch gave it nothing to compare; the curve has its units of every step."""
        for name in self.names:
            if not values[f"{name}.units"] and name not in self._idle:
                self._idle.add(name)
                self.ctx.progress(f"note: {name} found nothing to compare in the batch of step {step:,}")

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step's values with the learning rates and the speeds, and show a line of progress."""
        factor = learning_rate_factor(step - 1, self.config)
        rates = {f"learning_rate.{name}": peak * factor for name, peak in self.peak_rates.items()}
        speeds = self.telemetry.report()
        self.log(step, {**values, "learning_rate": self.config.learning_rate * factor, **rates, **speeds})
        terms = [f"{name} {values[name]:.4g}" for name in self.names if name in values]
        loss = f"loss {values['loss']:.4f}" + (f" ({', '.join(terms)})" if len(self.names) > 1 else "")
        speed = f"{speeds['student_tokens_per_second']:,.0f} tok/s"
        remaining = _duration(self.telemetry.seconds_per_step * (self.config.steps - step))
        self.ctx.progress(f"step {step:,}/{self.config.steps:,}  {loss}  {speed}  ETA {remaining}")

    def compare_memory(self) -> None:
        """Show the most memory that was used beside what was planned."""
        if self.ctx.rank != 0:
            return
        plan = json.loads((self.ctx.work / memory_report.NAME).read_text(encoding="utf-8"))
        planned, used = plan["total"]["device"] / 2**20, self.telemetry.peak_memory_mib
        self.ctx.progress(f"peak memory: {used:,.0f} MiB; the plan was at most {planned:,.0f} MiB")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve, with the number of batches that were left out so far, if any."""
        if self.ctx.rank != 0:
            return
        skipped = {"skipped_batches": len(self.guard.skipped)} if self.guard.skipped else {}
        self.ctx.metrics.log(step, **values, **skipped)
        curve.append(self.ctx.work, step, {**values, **skipped})


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}m{seconds:02d}s"
