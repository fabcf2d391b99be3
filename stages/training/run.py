"""Put a training stage together: models, backend, data and objectives; train; export an ordinary model directory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch

from alignment.byte_view import ByteView
from losses.balance import Balancer
from stages.batch_split import split_batch
from stages.objectives import LossEntry
from stages.stage import StageContext, StageError
from stages.training.attention import check_attention
from stages.training.backends import process_group
from stages.training.backends.backend import Backend
from stages.training.backends.zero import Zero
from stages.training.config import TrainingConfig
from stages.training.data.batches import BatchSource
from stages.training.data.blocks import WindowMaker
from stages.training.data.documents import TrainingDocuments
from stages.training.data.exchange import between_processes
from stages.training.data.order import ReadingOrder
from stages.training.data.prefetch import BlockSource, at_the_start
from stages.training.data.split_progress import ShareDone
from stages.training.data.stream import WindowStream
from stages.training.data.windows import Window
from stages.training.held_out import HeldOut, held_out_windows
from stages.training.loop import Trainer
from stages.training.memory import memory_report
from stages.training.models import ScoringModel, pick_device
from stages.training.monitoring.flops import ModelFlops, peak_flops
from stages.training.monitoring.guard import Guard
from stages.training.monitoring.reporter import Reporter
from stages.training.monitoring.telemetry import Telemetry
from stages.training.on_policy.setup import OnPolicy
from stages.training.optimiser import peak_rates
from stages.training.pairing import Models, load_models
from stages.training.saving.export import export_student
from stages.training.step import Stepper
from stages.training.teachers.averaged_teacher import followed
from stages.training.teachers.teaching import Teaching, loaded_dtype


def train_student(
    ctx: StageContext,
    config: TrainingConfig,
    losses: Sequence[LossEntry],
    maker: WindowMaker,
    *,
    teachings: Sequence[Teaching] = (),
    balancer: Balancer | None = None,
    on_policy: OnPolicy | None = None,
) -> None:
    """Train ``ctx.input("student")`` on ``ctx.input("documents")`` and write the trained model to ``ctx.out``.

    Args:
        ctx: the stage's context; its inputs hold ``student`` and ``documents``.
        config: optimisation options.
        losses: the terms of the loss.
        maker: cuts documents into training windows. What it says of them is published as ``training_data.json``, with
            what training took of every domain; its ``warnings`` are shown.
        teachings: the teachers and what may be seen of each; none when no loss needs a teacher.
        balancer: sets the losses' weights from their gradients; None for the recipe's weights.
        on_policy: what of a step's windows the student writes; None for nothing.

    Raises:
        StageError: the batch does not divide over the processes, or the text is too short for one batch.
        StageInterrupted: the stage was asked to stop and saved a checkpoint.
    """
    micro_batch, accumulation = _split_batch(ctx, config)
    zero = Zero.of(ctx, config, micro_batch, accumulation, loaded_dtype(teachings))
    with closing(_block_source(ctx, config, maker)) as source, process_group.left_in_the_end():
        _train(ctx, config, losses, source, teachings, balancer, on_policy, zero, micro_batch)


def _train(
    ctx: StageContext,
    config: TrainingConfig,
    losses: Sequence[LossEntry],
    source: BlockSource,
    teachings: Sequence[Teaching],
    balancer: Balancer | None,
    on_policy: OnPolicy | None,
    zero: Zero,
    micro_batch: int | None,
) -> None:
    device = pick_device(ctx.local_rank)
    check_attention(config.attention, device)
    memory_report.report_memory(ctx, config, losses, teachings, device, zero, on_policy and on_policy.options)
    _choose_precision(config, device)
    held_out = _held_out_text(ctx, config)
    zero.join(ctx, device)
    source.exchange = between_processes()
    stream = WindowStream(source)
    if on_policy is None or on_policy.options.fraction < 1:
        _look_at_text(ctx, config, stream, source.maker)
    ctx.progress(
        f"loading {'teacher and student' if any(each.scores is None for each in teachings) else 'the student'}"
    )
    models = load_models(ctx, config, losses, teachings, device, zero)
    guard = Guard(config.max_rollbacks, config.spike_factor)
    # Before ZeRO-3 takes the parameters apart.
    telemetry = _telemetry(config, models, device)
    rates = peak_rates(models.student.model, models.student.auxiliary, config)
    backend = followed(zero.backend(models.student, config), models.teachers, saves=ctx.rank == 0)
    stepper = Stepper(backend, models.terms, models.teachers, balancer, config.steps)
    batches = BatchSource(
        stream if on_policy is None else on_policy.stream(ctx, config, stream, source, models.student),
        config.batch_windows,
        micro_batch,
        ctx.rank,
        ctx.world_size,
        device,
        batch_tokens=config.batch_tokens,
        row_tokens=config.window_tokens if config.packing else None,
    )
    trainer = Trainer(
        ctx,
        config,
        batches,
        backend,
        stepper,
        device,
        trained=[parameter for parameter in models.student.parameters() if parameter.requires_grad],
        guard=guard,
        telemetry=telemetry,
        reporter=Reporter(ctx, config, stepper.names, rates, telemetry, guard),
        held_out=_held_out(ctx, config, held_out, models.student, backend, device),
        ahead=on_policy is None,
    )
    notes = trainer.run()
    covered = source.maker.describe(stream.account) | {"drawn": stream.account.mixture()}
    export_student(ctx, backend, models.student, covered | notes)


def _choose_precision(config: TrainingConfig, device: torch.device) -> None:
    if config.dtype == "bf16" and device.type == "cpu":
        # The head's operands are bf16 numbers held in float32; this lets the CPU multiply them as such, and still sum
        # and return float32, at twice the speed.
        torch.set_float32_matmul_precision("medium")


def _block_source(ctx: StageContext, config: TrainingConfig, maker: WindowMaker) -> BlockSource:
    documents = TrainingDocuments(ctx.input("documents"), ctx.cache, ctx.progress)
    order = ReadingOrder(documents.weights, documents.streamed, config.seed, config.shuffle_documents)
    moving = config.splits is not None and config.splits.proportion_schedule != "constant"
    return BlockSource(
        documents,
        maker,
        order,
        config.data_workers,
        ctx.rank,
        ctx.world_size,
        should_stop=ctx.should_stop,
        share_done=ShareDone(documents, maker, order, config) if moving else at_the_start,
    )


def _look_at_text(ctx: StageContext, config: TrainingConfig, stream: WindowStream, maker: WindowMaker) -> None:
    """Say how much text there is and what of it is lost, before any model is loaded.

    Raises:
        StageError: there is too little for one batch.
    """
    stream.check(config.batch_windows, config.batch_tokens)
    batch = f"{config.batch_tokens:,} tokens" if config.batch_tokens else f"{config.batch_windows:,}"
    ctx.progress(f"{stream.size}; {config.steps:,} steps of {batch}")
    for warning in maker.describe(stream.account)["warnings"]:
        ctx.progress(f"note: {warning}")


def _split_batch(ctx: StageContext, config: TrainingConfig) -> tuple[int | None, int | None]:
    """Rows in one forward pass and forward passes in one step, for each process; None where steps differ."""
    if config.packing or config.batch_windows is None:
        return config.micro_batch_windows, None
    try:
        return split_batch(config.batch_windows, config.micro_batch_windows, ctx.world_size)
    except ValueError as error:
        raise StageError(str(error)) from None


def _telemetry(config: TrainingConfig, models: Models, device: torch.device) -> Telemetry:
    networks = [teacher.network for teacher in models.teachers]
    peak = config.device_tflops * 1e12 if config.device_tflops else peak_flops(device, config.dtype)
    return Telemetry(
        device,
        ModelFlops.of(models.student.model),
        [None if network is None else ModelFlops.of(network) for network in networks],
        peak,
    )


def _held_out_text(ctx: StageContext, config: TrainingConfig) -> list[Window]:
    """The text to choose the best checkpoint by, empty where the last one is kept; made before any model is loaded.

    Raises:
        StageError: the student cannot be measured on it.
    """
    if config.keep_best is None:
        return []
    documents = TrainingDocuments(ctx.input("held_out"), ctx.cache, ctx.progress)
    view = ByteView.from_tokenizer(ctx.input("student"))
    return held_out_windows(documents, view, config.window_tokens, config.keep_best.max_documents)


def _held_out(
    ctx: StageContext,
    config: TrainingConfig,
    windows: Sequence[Window],
    student: ScoringModel,
    backend: Backend,
    device: torch.device,
) -> HeldOut | None:
    if config.keep_best is None:
        return None
    micro_batch = config.micro_batch_windows or config.batch_windows or 1
    every = config.keep_best.every
    return HeldOut(windows, every, micro_batch, ctx.rank, ctx.world_size, device, student, backend)
