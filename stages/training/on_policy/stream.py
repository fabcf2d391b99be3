"""The windows of a step of on-policy distillation: text of the data, and what the student writes at that step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stages.stage import StageContext, StageError, StageInterrupted
from stages.training.data.windows import Window
from stages.training.on_policy import record
from stages.training.on_policy.guards import Breach, Guards, Writing, measure
from stages.training.on_policy.prompts import PromptStream
from stages.training.on_policy.rollouts import Author, Rollout
from stages.training.on_policy.windows import RolloutAligner, ScoredRollout
from stages.training.saving import checkpoint

PREFIX = "rollouts."
"""Of the names of what is logged."""


class WindowSource(Protocol):
    """Where a step's windows come from; ``stages.training.data.stream.WindowStream`` is one."""

    def take(self, count: int) -> list[Window]:
        """The next ``count`` windows."""

    def measurements(self) -> dict[str, float]:
        """What there is to log of them."""

    def state(self) -> dict[str, Any]:
        """Where to read on, as JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Read on from what ``state`` gave."""


@dataclass
class OnPolicyStream:
    """Windows of which the last ones of every step are rollouts of the student as it is then.

    Attributes:
        ctx: of the stage; the first process keeps a sample of rollouts in ``work``.
        text: the windows of the data.
        prompts: what the student continues.
        author: the student.
        aligner: makes windows of what it wrote.
        guards: end the run when the student collapses.
        rollouts: how many of a step's windows are rollouts.
        record_every: steps between samples in the record.
        stop_on_breach: a guard's limit ends the run; else it is said once.
    """

    ctx: StageContext
    text: WindowSource
    prompts: PromptStream
    author: Author
    aligner: RolloutAligner
    guards: Guards
    rollouts: int
    record_every: int
    stop_on_breach: bool
    _taken: int = field(default=0, init=False)
    _measured: dict[str, float] = field(default_factory=dict, init=False)
    _warned: set[str] = field(default_factory=set, init=False)
    _fresh: bool = field(default=True, init=False)

    def take(self, count: int) -> list[Window]:
        """The windows of the next step: ``count`` less the rollouts from the data, then the rollouts. Collective.

        Raises:
            StageError: a guard's limit is passed, the student's logits are not finite, or there are too few data.
            StageInterrupted: a process was asked to stop; ``state`` is that of before.
        """
        before = self.state()
        windows = self.text.take(count - self.rollouts) if count > self.rollouts else []
        started = time.monotonic()
        try:
            written = self.author.write(self.prompts.take(self.rollouts))
        except StageInterrupted:
            self.restore(before)
            raise
        scored = [self.aligner(rollout) for rollout in written]
        self._taken += 1
        values = measure([_writing(*pair) for pair in zip(written, scored, strict=True)])
        self._measured = values | _alignment(written, scored) | {"seconds": time.monotonic() - started}
        self._record(written)
        self._judge(self.guards.check(values))
        return windows + [each.window for each in scored]

    def measurements(self) -> dict[str, float]:
        """What there is to log of the step that was taken last."""
        return {PREFIX + name: value for name, value in self._measured.items()}

    def state(self) -> dict[str, Any]:
        """Where the next step goes on, as JSON values; the same in every process."""
        return {
            "text": self.text.state(),
            "prompts": self.prompts.state(),
            "taken": self._taken,
            "guards": self.guards.state(),
            "warned": sorted(self._warned),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self.text.restore(state["text"])
        self.prompts.restore(state["prompts"])
        self._taken = state["taken"]
        self.guards.restore(state["guards"])
        self._warned = set(state["warned"])
        self._fresh = True

    def _record(self, written: Sequence[Rollout]) -> None:
        if self.ctx.rank != 0:
            return
        if self._fresh:
            record.truncate(self.ctx.work, self._taken - 1)
            self._fresh = False
        if self._taken == 1 or self._taken % self.record_every == 0:
            record.append(self.ctx.work, self._taken, written)

    def _judge(self, breaches: Sequence[Breach]) -> None:
        if breaches and self.stop_on_breach:
            raise StageError(
                f"step {self._taken:,}: the student collapses: {'; '.join(map(str, breaches))}. Read what it writes in "
                f"{self.ctx.work / record.NAME}; {_last_checkpoint(self.ctx.work)}. Ways out: a lower learning_rate or "
                "a warm-up, a smaller on_policy.fraction, another loss beside (alm, cross_entropy on text), teacher: "
                "ema; or another limit under on_policy.guards, or on_breach: warn"
            )
        for breach in breaches:
            if breach.guard not in self._warned:
                self._warned.add(breach.guard)
                self.ctx.progress(f"warning: step {self._taken:,}: {breach}")


def _writing(rollout: Rollout, scored: ScoredRollout) -> Writing:
    return Writing(
        ids=rollout.ids,
        text=rollout.text,
        reference=rollout.prompt.reference,
        cut_off=rollout.end is None,
        end_mass=rollout.end_mass,
        scored_bytes=scored.scored_bytes,
    )


def _alignment(written: Sequence[Rollout], scored: Sequence[ScoredRollout]) -> dict[str, float]:
    """Whether the sampled tokens are what is trained on, and how many of them the tokenizer would give itself."""
    tokens = sum(len(rollout.ids) for rollout in written)
    values = {"own_tokens": float(np.mean([each.own_tokens for each in scored]))}
    return values | ({"canonical": sum(each.canonical for each in scored) / tokens} if tokens else {})


def _last_checkpoint(work: Path) -> str:
    """Where the newest checkpoint lies, in words."""
    whole = [path.parent for path in (work / "ckpt").glob(f"step-*/{checkpoint.MARKER}")]
    if not whole:
        return "no checkpoint was written yet"
    return f"the last checkpoint is {max(whole, key=lambda path: int(path.name.removeprefix('step-')))}"
