"""Put a training stage together: models, backend, data and objectives; train; export an ordinary model directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoTokenizer

from losses.balance import Balancer
from stages.artifacts import write_json
from stages.objectives import LossEntry
from stages.stage import StageContext, StageError
from stages.training import curve
from stages.training.backend import Backend, DeepSpeedBackend, PlainBackend
from stages.training.batches import BatchSource
from stages.training.config import TrainingConfig
from stages.training.loop import Trainer
from stages.training.models import ScoringModel, pick_device
from stages.training.pairing import Teaching, load_models
from stages.training.step import Stepper
from stages.training.stream import WindowStream
from stages.training.windows import Document, Window, read_documents


def train_student(
    ctx: StageContext,
    config: TrainingConfig,
    losses: Sequence[LossEntry],
    windows_of: Callable[[Document, int, int], list[Window]],
    *,
    teaching: Teaching | None = None,
    balancer: Balancer | None = None,
    account: Callable[[], Mapping[str, Any]] | None = None,
) -> None:
    """Train ``ctx.input("student")`` on ``ctx.input("documents")`` and write the trained model to ``ctx.out``.

    Args:
        ctx: the stage's context; its inputs hold ``student`` and ``documents``.
        config: optimisation options.
        losses: the terms of the loss.
        windows_of: (document, its number, epoch) -> training windows.
        teaching: the teacher and what may be seen of it; None when no loss needs a teacher.
        balancer: sets the losses' weights from their gradients; None for the recipe's weights.
        account: gives, once the first epoch is cut into windows, what of the text they cover; it is published as
            ``training_data.json``, and its ``warnings`` are shown.

    Raises:
        StageError: the batch does not divide over the processes, or the text is too short for one batch.
        StageInterrupted: the stage was asked to stop and saved a checkpoint.
    """
    micro_batch, accumulation = _split_batch(ctx, config)
    stream = WindowStream(read_documents(ctx.input("documents")), windows_of, config.seed)
    stream.take(config.batch_windows)  # too little text is an error before any model is loaded
    stream.restore({"epoch": 0, "cursor": 0})
    ctx.progress(
        f"{len(stream.windows_in_epoch(0)):,} windows of text an epoch; {config.steps:,} steps of "
        f"{config.batch_windows:,}; loading {'teacher and student' if teaching else 'the student'}"
    )
    covered = account() if account else None
    for warning in covered["warnings"] if covered else ():
        ctx.progress(f"note: {warning}")
    device = pick_device(ctx.local_rank)
    if config.dtype == "bf16" and device.type == "cpu":
        # The head's operands are bf16 numbers held in float32; this lets the CPU multiply them as such, and still sum
        # and return float32, at twice the speed.
        torch.set_float32_matmul_precision("medium")
    models = load_models(ctx, config, losses, teaching, device)
    backend = _backend(ctx, models.student, config, micro_batch, accumulation)
    stepper = Stepper(backend, models.terms, models.teachers, balancer, config.steps)
    try:
        batches = BatchSource(stream, config.batch_windows, micro_batch, ctx.rank, ctx.world_size, device)
        Trainer(ctx, config, batches, backend, stepper, device).run()
        _export(ctx, backend, models.student, covered)
    finally:
        backend.close()


def _split_batch(ctx: StageContext, config: TrainingConfig) -> tuple[int, int]:
    """Windows in one forward pass and forward passes in one step, for each process."""
    share, rest = divmod(config.batch_windows, ctx.world_size)
    micro = config.micro_batch_windows or share
    if rest or share == 0 or share % micro:
        raise StageError(
            f"batch_windows ({config.batch_windows}) must be processes ({ctx.world_size}) × micro_batch_windows "
            f"({micro}) × a whole number of forward passes"
        )
    return micro, share // micro


def _backend(
    ctx: StageContext, student: ScoringModel, config: TrainingConfig, micro_batch: int, accumulation: int
) -> Backend:
    stage = ctx.resources.get("zero", {}).get("student", 0)
    if ctx.world_size == 1 and stage == 0:
        return PlainBackend(student, config)
    return DeepSpeedBackend(student, config, stage, micro_batch, accumulation)


def _export(ctx: StageContext, backend: Backend, student: ScoringModel, covered: Mapping[str, Any] | None) -> None:
    """Write weights, configuration and tokenizer: an ordinary Hugging Face directory, and beside it the training curve
    and what of the text was covered."""
    weights = backend.weights()
    if ctx.rank != 0 or weights is None:
        return
    student.model.save_pretrained(ctx.out, state_dict=dict(weights))
    tokenizer = AutoTokenizer.from_pretrained(ctx.input("student"))
    tokenizer.save_pretrained(ctx.out)
    shutil.copy2(ctx.work / curve.NAME, ctx.out / curve.NAME)
    if covered is not None:
        write_json(ctx.out / "training_data.json", covered)
