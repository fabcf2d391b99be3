"""Training a hypernetwork: in every step another tokenizer, the loss of the frozen student with rows predicted for it.

There is no warm-up on the lexical loss alone, as ZeTT has: a network that predicts the difference from the mean of the
pieces' rows starts where that warm-up ends.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.hypernetwork.config import HypernetConfig
from stages.hypernetwork.losses import FrozenModel, lexical_loss
from stages.hypernetwork.network import Hypernetwork
from stages.hypernetwork.samples import HELD_OUT, TRAINING, Sample, Sampler
from stages.hypernetwork.table import TableLayout, TokenRows
from stages.stage import StageContext, StageError, StageInterrupted
from stages.training.monitoring import curve
from stages.training.optimiser import learning_rate_factor
from stages.training.saving import checkpoint

_HELD_OUT_TOKENIZERS = 4


class Losses(NamedTuple):
    """Cross-entropy in nats a token, and the lexical loss."""

    language_model: Tensor
    lexical: Tensor


@dataclass
class HypernetTrainer:
    """Takes optimiser steps from the newest checkpoint, or the start, to the last one.

    Attributes:
        ctx: checkpoints and the training curve go to its ``work``.
        network: on ``device``.
        table: [V, C], the student's rows, on ``device``; ``layout`` says what is in a row.
        prefix_ids: the student's ids that it puts before a text.
    """

    ctx: StageContext
    config: HypernetConfig
    network: Hypernetwork
    table: Tensor
    layout: TableLayout
    prefix_ids: list[int]
    model: FrozenModel
    sampler: Sampler
    device: torch.device
    _optimiser: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        self._optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )

    def run(self) -> None:
        """Train to the last step.

        Raises:
            StageError: the gradient is not finite.
            StageInterrupted: asked to stop; a checkpoint of the last finished step is saved.
        """
        first = step = self._resume()
        started = time.monotonic()
        while step < self.config.steps:
            if self.ctx.should_stop():
                if step > first:
                    self._save(step)
                raise StageInterrupted(f"stopped after step {step:,} of {self.config.steps:,}")
            values = self._step(step)
            step += 1
            if step % self.config.log_every == 0 or step == self.config.steps:
                self._report(step, values, (time.monotonic() - started) / (step - first))
            if step % self.config.checkpoint_every == 0 or step == self.config.steps:
                self._save(step)

    @torch.no_grad()
    def held_out_losses(self) -> dict[str, float]:
        """Cross-entropy, in nats a token, with tokenizers that no training step draws: with the means of the pieces'
        rows, as the training starts, and with the predicted rows."""
        self.network.eval()
        totals = {"piece_mean": 0.0, "hypernet": 0.0}
        tokens = 0
        for number in range(_HELD_OUT_TOKENIZERS):
            sample = self.sampler.draw(HELD_OUT, number).to(self.device)
            rows = {
                "piece_mean": self.network.start(self.table, sample.pieces),
                "hypernet": self.network(self.table, sample.pieces, sample.priors),
            }
            for name in totals:
                output = self.model.cross_entropy(sample.batch, self.layout.split(rows[name]), self._prefix())
                totals[name] += float(output.total)
            tokens += int(output.count)
        return {f"held_out_loss.{name}": total / tokens for name, total in totals.items()}

    def losses(self, sample: Sample) -> Losses:
        """Of one drawn tokenizer, with gradient."""
        predicted = self.network(self.table, sample.pieces, sample.priors)
        output = self.model.cross_entropy(sample.batch, self.layout.split(predicted), self._prefix())
        single = (sample.pieces >= 0).sum(dim=1) == 1
        known = self.table[sample.pieces[single, 0]]
        lexical = lexical_loss(self.layout.split(predicted[single]), self.layout.split(known))
        return Losses(output.total / output.count, lexical)

    def _step(self, step: int) -> dict[str, float]:
        self.network.train()
        losses = self.losses(self.sampler.draw(TRAINING, step).to(self.device))
        total = losses.language_model + self.config.lexical_weight * losses.lexical
        total.backward()
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm))
        if not math.isfinite(norm):
            raise StageError(f"step {step + 1}: the gradient is not finite; lower learning_rate or check the data")
        factor = learning_rate_factor(step, self.config)
        for group in self._optimiser.param_groups:
            group["lr"] = self.config.learning_rate * factor
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return {
            "loss": total.item(),
            "language_model_loss": losses.language_model.item(),
            "lexical_loss": losses.lexical.item(),
            "gradient_norm": norm,
            "learning_rate": self.config.learning_rate * factor,
        }

    def _prefix(self) -> TokenRows:
        return self.layout.split(self.table[self.prefix_ids].float())

    def _report(self, step: int, values: dict[str, float], seconds_per_step: float) -> None:
        self.ctx.metrics.log(step, **values, seconds_per_step=seconds_per_step)
        curve.append(self.ctx.work, step, values)
        self.ctx.progress(
            f"step {step:,}/{self.config.steps:,}  loss {values['loss']:.4f} (language model "
            f"{values['language_model_loss']:.4f}, lexical {values['lexical_loss']:.4g})  {seconds_per_step:.2f} s/step"
        )

    def _save(self, step: int) -> None:
        root = self.ctx.work / "ckpt"
        directory = checkpoint.begin(root, step)
        state = {"network": self.network.state_dict(), "optimiser": self._optimiser.state_dict()}
        torch.save(state, directory / "training.pt")
        checkpoint.complete(directory, {"step": step})
        checkpoint.prune(root, step, self.config.keep_checkpoints)

    def _resume(self) -> int:
        found = checkpoint.latest(self.ctx.work / "ckpt", self.ctx.progress)
        step = 0 if found is None else found[1]["step"]
        curve.truncate(self.ctx.work, step)
        if found is not None:
            saved = torch.load(found[0] / "training.pt", weights_only=True, map_location=self.device)
            self.network.load_state_dict(saved["network"])
            self._optimiser.load_state_dict(saved["optimiser"])
            self.ctx.progress(f"resuming after step {step:,}/{self.config.steps:,}")
        return step
