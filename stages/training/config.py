"""Options every training stage has. Light: read while a run is planned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.stage import StageConfig, not_keyed

AverageCoefficient = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(StageConfig):
    """Optimisation, batches and cadence of a training stage."""

    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch_windows: int = Field(8, ge=1)
    """Windows of text in one optimiser step, over all processes and micro-batches together."""
    micro_batch_windows: int | None = not_keyed(None, ge=1)
    """Windows in one forward pass of one process; default: its whole share of the batch."""
    window_tokens: int = Field(256, ge=8)
    """Longest window, in tokens of either tokenizer; documents are cut at boundaries both tokenizers have."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    embedding_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the input embedding and the output head; default: ``learning_rate``."""
    auxiliary_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of parameters that objectives bring along (projectors); default: twice ``learning_rate``."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up from zero."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes to zero after the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices; vectors and embeddings have none."""
    betas: tuple[AverageCoefficient, AverageCoefficient] = (0.9, 0.95)
    """AdamW's running-average coefficients."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest global gradient norm."""
    trainable: Literal["all", "embeddings"] = "all"
    """Which parameters learn: every one, or only the input embedding and the output head."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Compute type of the student; bf16 keeps float32 master weights in the optimiser."""
    seed: int = 0
    """Seeds the order of the data and everything sampled; default: the recipe's seed."""
    checkpoint_every: int = not_keyed(100, ge=1)
    """Steps between checkpoints; one is also written when the run is asked to stop."""
    keep_checkpoints: int = not_keyed(2, ge=1)
    """How many complete checkpoints stay on disk; older ones are the fallback when the newest is damaged."""
    log_every: int = not_keyed(5, ge=1)
    """Steps between lines of progress and points of the training curve."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> TrainingConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})")
        return self
