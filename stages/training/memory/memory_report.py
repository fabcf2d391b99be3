"""A training stage's memory plan: made from its options, shown, and held against what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import psutil
import torch

from stages.artifacts import write_json
from stages.objectives import LossEntry
from stages.objectives.capabilities import GIVES, capability
from stages.stage import StageContext
from stages.training.backends.zero import Zero
from stages.training.config import TrainingConfig
from stages.training.memory.memory_facts import ModelMemory, cache_memory, student_memory, teacher_memory
from stages.training.memory.memory_plan import Layout, Reading, Rollouts, plan_memory
from stages.training.memory.memory_table import GIB, MemoryPlan, Place
from stages.training.on_policy.options import OnPolicyOptions
from stages.training.teachers.teaching import Teaching

NAME = "memory_plan.json"
"""Where the plan is recorded, in the stage's ``work`` and beside the model."""

_ELSEWHERE: tuple[tuple[Place, str], ...] = (("host", "in host memory"), ("nvme", "on NVMe"))


def report_memory(
    ctx: StageContext,
    config: TrainingConfig,
    losses: Sequence[LossEntry],
    teachings: Sequence[Teaching],
    device: torch.device,
    zero: Zero,
    on_policy: OnPolicyOptions | None = None,
) -> None:
    """Print and record what each process will hold, before any of it is loaded; on the first process.

    A plan that does not fit is a warning: it is an upper estimate.

    Args:
        ctx: the stage's context.
        config: optimisation options.
        losses: the terms of the loss.
        teachings: the teachers.
        device: of this process.
        zero: DeepSpeed's settings, and what nothing comes of, which is recorded here.
        on_policy: what the student writes; None for nothing.

    Raises:
        StageError: a target of the adapter names no linear layer.
    """
    if ctx.rank != 0:
        return
    layout = layout_of(config, ctx.resources.get("zero", {}), ctx.world_size, device)
    if zero.student is not None:
        layout = replace(layout, bucket=zero.student["zero_optimization"].get("reduce_bucket_size", layout.bucket))
    student = student_memory(ctx.input("student"), config, layout.rows, layout.tokens)
    loaded = [teaching for teaching in teachings if teaching.dtype is not None and not teaching.is_student]
    teacher = _together([teacher_memory(each.directory, each.dtype, layout.rows, layout.tokens) for each in loaded])
    reading = _reading(losses, teachings, student, teacher)
    rollouts = None if on_policy is None else _rollouts(ctx, config, on_policy)
    copies = _copies(teachings, student, layout)
    plan = plan_memory(student, teacher, layout, reading, copies=copies, rollouts=rollouts)
    if device.type == "cpu":
        plan = plan.of_process(_resident())
    available = _available(device, ctx.world_size // (ctx.resources.get("nodes") or 1))
    facts = {"available": available, "without_effect": list(zero.without_effect)}
    write_json(ctx.work / NAME, plan.record() | facts)
    ctx.metrics.log(0, planned_memory_mib=plan.total("device") / 2**20)
    ctx.progress(f"{student.trained:,} of {student.parameters:,} parameters train")
    _show(ctx, plan, available)


def layout_of(config: TrainingConfig, zero: Mapping[str, Any], processes: int, device: torch.device) -> Layout:
    """The largest micro-batch that the options allow, and how ``resources.<stage>.zero`` spreads the models."""
    if config.batch_windows is None:
        step = ceil(config.batch_tokens / config.window_tokens / processes)
    else:
        step = ceil(config.batch_windows / processes)
    rows = min(config.micro_batch_windows or step, step)
    offloads = {name: zero.get(name, "none") for name in ("offload_optimizer", "offload_parameters", "offload_teacher")}
    if device.type == "cpu":  # where there is but one memory
        offloads = {name: "none" if place == "cpu" else place for name, place in offloads.items()}
    return Layout(
        rows=rows,
        tokens=config.window_tokens,
        passes=ceil(step / rows),
        processes=processes,
        student_stage=zero.get("student", 0),
        teacher_stage=zero.get("teacher", 0),
        **offloads,
        checkpointing=config.activation_checkpointing,
        accelerator=device.type != "cpu",
    )


def _reading(
    losses: Sequence[LossEntry], teachings: Sequence[Teaching], student: ModelMemory, teacher: ModelMemory | None
) -> Reading:
    needs = [entry.options.needs or capability(entry.name).needs for entry in losses]
    scores = {"nothing": 1, "scores": 1, "boundary": 2}  # cross-entropy reads the labels' scores too
    signal = None
    top_k = [teaching.top_k for teaching in teachings]
    if teachings:
        enough = all(need in GIVES["scores"] for need in needs)
        signal = "scores" if enough else "full" if None in top_k else "top_k"
    hidden = [entry.hidden_states for entry in losses if entry.hidden_states is not None]
    projectors = sum(entry.options.trains_projector for entry in losses)
    return Reading(
        scores=max(scores.get(need, 0) for need in needs),
        distributions=sum(need in ("top_k", "distribution", "weights") for need in needs),
        signal=signal,
        top_k=max(top_k) if signal == "top_k" else 0,
        layers=sum(len(options.layer_pairs(student.layers)) for options in hidden),
        projection=projectors * student.width * (teacher or student).width,
    )


def _rollouts(ctx: StageContext, config: TrainingConfig, options: OnPolicyOptions) -> Rollouts | None:
    """The most that one process writes at a time: with a conversation before it, a rollout can fill a whole window."""
    count = options.rollouts(config.batch_windows)
    if not count:
        return None
    rows = min(options.batch or ceil(count / ctx.world_size), count)
    cache = cache_memory(ctx.input("student"), config.dtype, rows, config.window_tokens)
    return Rollouts(rows, config.window_tokens, cache)


def _copies(teachings: Sequence[Teaching], student: ModelMemory, layout: Layout) -> int:
    """What a teacher made of the student keeps: its vocabulary as it was, or a float32 average of what trains."""
    if any(teaching.is_student for teaching in teachings):
        return student.itemsize * student.vocabulary * student.vocabulary_trains
    if any(teaching.average is not None for teaching in teachings):
        gathered = 4 * student.output_rows * student.width if layout.student_stage else 0
        return 4 * student.trained * (student.itemsize < 4) + gathered
    return 0


def _together(teachers: Sequence[ModelMemory]) -> ModelMemory | None:
    """Several teachers as one: all their parameters, and the one that needs most while it is at work."""
    if not teachers:
        return None
    return replace(
        max(teachers, key=lambda teacher: teacher.activations or 0),
        parameter_bytes=sum(teacher.parameter_bytes for teacher in teachers),
        parameters=sum(teacher.parameters for teacher in teachers),
    )


def _available(device: torch.device, processes: int) -> int:
    """Bytes that each of a machine's processes may take: its accelerator's, or its own and a share of the free ones."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return _resident() + psutil.virtual_memory().available // processes


def _resident() -> int:
    """Bytes of the machine's memory that this process holds."""
    return psutil.Process().memory_info().rss


def _show(ctx: StageContext, plan: MemoryPlan, available: int) -> None:
    planned = plan.total("device")
    elsewhere = [f", {plan.total(place) / GIB:.2f} GiB {where}" for place, where in _ELSEWHERE if plan.total(place)]
    unknown = " beside what is unknown" if any(line.size is None for line in plan.lines) else ""
    total = f"at most {planned / GIB:.2f} GiB{unknown} of {available / GIB:.1f} GiB a process"
    ctx.progress(f"memory plan: {total}{''.join(elsewhere)}")
    for line in plan.table():
        ctx.progress(line)
    if planned > available:
        ctx.progress(
            "warning: the memory plan exceeds what there is; lower micro_batch_windows, or split the models with zero"
        )
