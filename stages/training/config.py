"""Options every training stage has. Light: read while a run is planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.batch_split import split_batch
from stages.document_sets import DocumentsSourceConfig
from stages.stage import StageConfig, not_keyed
from stages.training.adapters.adapter_options import Adapter
from stages.training.data.split_options import SplitOptions

_BATCH_WINDOWS = 8

AverageCoefficient = Annotated[float, Field(ge=0, lt=1)]


class KeepBest(StageConfig):
    """Publish the checkpoint that predicts held-out text best, instead of the last."""

    every: int = Field(ge=1)
    """Steps between measurements of bits per byte on ``data.eval``; the last step is measured too."""
    max_documents: int = Field(16, ge=1)
    """Documents that are read, from the first on."""


class TrainingConfig(StageConfig):
    """Optimisation, batches and cadence of a training stage."""

    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch_windows: int | None = Field(None, ge=1)
    """Windows of text in one optimiser step, over all processes and micro-batches together; default: 8, unless
    ``batch_tokens`` is given."""
    batch_tokens: int | None = Field(None, ge=8)
    """Instead of ``batch_windows``: a step takes the next windows until they hold this many tokens, each by its longer
    side; ``window_tokens`` at least."""
    micro_batch_windows: int | None = not_keyed(None, ge=1)
    """Windows in one forward pass of one process, or rows of windows with ``packing``; default: its whole share of the
    batch."""
    window_tokens: int = Field(256, ge=8)
    """Longest window, in tokens of either tokenizer; documents are cut at boundaries both tokenizers have."""
    shuffle_documents: int = Field(1024, ge=1)
    """Documents whose windows are mixed with one another; an epoch is a random order of all documents, in blocks of so
    many. A block is held in memory, about 25 bytes a token."""
    data_workers: int = not_keyed(1, ge=0)
    """Processes, beside each training process, that tokenise and align the next blocks; 0 does it in the training
    process."""
    packing: bool = not_keyed(False)
    """Put short windows together into rows of up to ``window_tokens`` tokens, instead of padding them to the longest;
    they do not see each other. Worth it for texts that differ in length, such as conversations."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = not_keyed("sdpa")
    """The models' attention: PyTorch's own; FlashAttention's, if it is installed and ``dtype`` is bf16, which skips
    what packed windows do not see of each other; or plain matrix products."""
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
    adapter: Adapter | None = None
    """Train low-rank updates of the linear layers instead of all parameters; they are merged into the published model.
    Default: no adapter."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Compute type of the student; bf16 keeps float32 master weights in the optimiser."""
    seed: int = 0
    """Seeds the order of the data and everything sampled; default: the recipe's seed."""
    activation_checkpointing: bool = not_keyed(False)
    """Forget what the student's layers computed, and compute it again on the way back: about a third more time for
    far less memory."""
    checkpoint_every: int = not_keyed(100, ge=1)
    """Steps between checkpoints; one is also written when the run is asked to stop."""
    keep_checkpoints: int = not_keyed(2, ge=1)
    """How many complete checkpoints stay on disk; older ones are the fallback when the newest is damaged."""
    log_every: int = not_keyed(5, ge=1)
    """Steps between lines of progress and points of the training curve."""
    keep_best: KeepBest | None = None
    """Publish the checkpoint that predicts ``data.eval`` best (see docs/monitoring.md); default: the last."""
    spike_factor: float | None = Field(None, gt=1)
    """Also take back a step whose loss or gradient norm is this many times its median over the last 50 steps; default:
    only one that is not finite."""
    max_rollbacks: int = not_keyed(3, ge=0)
    """How many steps may be taken back: training returns to its newest checkpoint and goes on without that step's
    batch. One more ends it, as does the first with 0."""
    device_tflops: float | None = not_keyed(None, gt=0)
    """Teraflops a second that one device can do in ``dtype``, for the share that training reaches (MFU); default: by
    the name of the GPU, for those that are known."""

    @model_validator(mode="before")
    @classmethod
    def _size_the_batch(cls, values: Any) -> Any:
        # Here and not as the field's default, which would be at odds with every batch_tokens.
        sizes = ("batch_windows", "batch_tokens")
        if isinstance(values, Mapping) and all(values.get(name) is None for name in sizes):
            return {**values, "batch_windows": _BATCH_WINDOWS}
        return values

    @model_validator(mode="after")
    def _batch_fits(self) -> TrainingConfig:
        if self.batch_tokens is not None and self.batch_windows is not None:
            raise ValueError("batch_windows and batch_tokens both say how much text a step takes; remove one")
        if self.batch_tokens is not None and self.batch_tokens < self.window_tokens:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens:,}) must be at least window_tokens ({self.window_tokens:,}): one "
                "window can be that long"
            )
        if self.attention == "flash_attention_2" and self.dtype != "bf16":
            raise ValueError("attention: flash_attention_2 computes in bf16 alone; use dtype: bf16, or attention: sdpa")
        return self

    def check_processes(self, count: int) -> None:
        if self.batch_windows is not None and not self.packing:  # otherwise rows without windows fill up the batch
            split_batch(self.batch_windows, self.micro_batch_windows, count)

    @property
    def splits(self) -> SplitOptions | None:
        """How the student's tokens are split at random; None where they are not."""
        return None

    @property
    def wanted_inputs(self) -> frozenset[str]:
        return frozenset() if self.keep_best is None else frozenset({"held_out"})

    def upstream_problems(
        self, upstream: Mapping[str, Mapping[str, StageConfig]]
    ) -> Sequence[tuple[tuple[str | int, ...], str]]:
        return [
            (
                ("keep_best",),
                f"measures the student on the first documents of data.eval, which are the conversations of {name!r}: "
                "it takes plain text; put texts into data.eval, or remove keep_best",
            )
            for config in upstream.get("held_out", {}).values()
            if isinstance(config, DocumentsSourceConfig) and config.read_first().messages is not None
            for name in (config.read_first().name,)
        ]

    @model_validator(mode="after")
    def _warmup_fits(self) -> TrainingConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})")
        return self

    @model_validator(mode="after")
    def _adapter_fits(self) -> TrainingConfig:
        if self.adapter is not None and self.trainable == "embeddings":
            raise ValueError(
                "adapter trains layers that trainable: embeddings freezes; remove one (an adapter trains the "
                "embeddings too, unless it says embeddings: freeze)"
            )
        return self
