"""``accelerate launch`` with a configuration file that people have already.

Only the launch is accelerate's: it starts the ranks of our own engine. What its file says of training (precision,
DeepSpeed) is therefore not used, but it must not contradict the recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.launchers.worker import MODULE, free_port
from pipeline.recipe import Resources

STARTS_RANKS = ("MULTI_GPU", "DEEPSPEED")
"""The distributed types under which ``accelerate launch`` starts ``num_processes`` of them."""

PRECISIONS = {"no": "fp32", "bf16": "bf16"}
"""accelerate's ``mixed_precision`` -> our ``dtype``."""


def read_config(path: str) -> dict[str, Any]:
    """The content of an accelerate configuration file.

    Raises:
        ValueError: the file cannot be read or is no mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"accelerate_config {path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"accelerate_config {path} is no mapping; `accelerate config` writes a right one")
    if values.get("mixed_precision") is False:
        values["mixed_precision"] = "no"  # as YAML reads an unquoted no
    return values


def settled(resources: Resources) -> Resources:
    """The same with ``nodes`` and ``processes`` from the file where the recipe leaves them open.

    Raises:
        ValueError: the file cannot be used, or contradicts the recipe's resources; all conflicts are in the message.
    """
    config = read_config(str(resources.accelerate_config))
    if wrong := [*_unusable(config), *_resource_conflicts(config, resources)]:
        raise ValueError("; ".join(f"{resources.accelerate_config}: {problem}" for problem in wrong))
    machines = int(config.get("num_machines", 1))
    return resources.model_copy(update={"nodes": machines, "processes": int(config["num_processes"]) // machines})


def _unusable(config: Mapping[str, Any]) -> Iterator[str]:
    environment, kind = config.get("compute_environment", "LOCAL_MACHINE"), config.get("distributed_type", "NO")
    if environment != "LOCAL_MACHINE":
        yield f"compute_environment: {environment} is not started from here; use LOCAL_MACHINE"
    processes, machines = config.get("num_processes"), config.get("num_machines", 1)
    if not isinstance(processes, int) or not isinstance(machines, int) or processes < 1 or machines < 1:
        yield f"num_processes ({processes}) and num_machines ({machines}) must be numbers from 1"
    elif processes % machines:
        yield f"num_processes ({processes}) must divide over num_machines ({machines})"
    elif kind not in STARTS_RANKS and not (kind == "NO" and processes == 1):
        # For MULTI_CPU it would start one process, without a word, unless there is MPI.
        yield f"distributed_type: {kind} does not start {processes} of our processes; use {' or '.join(STARTS_RANKS)}"
    if machines != 1 and config.get("machine_rank", 0) != 0:
        yield f"machine_rank is {config['machine_rank']}, but `pipeline run` is for the machine of rank 0"
    if machines != 1 and not (config.get("main_process_ip") and config.get("main_process_port")):
        yield "several machines need main_process_ip and main_process_port"


def _resource_conflicts(config: Mapping[str, Any], resources: Resources) -> Iterator[str]:
    processes, machines = config.get("num_processes"), config.get("num_machines", 1)
    if resources.nodes not in (None, machines):
        yield f"num_machines is {machines}, but the recipe says nodes: {resources.nodes}"
    if resources.processes is not None and processes != resources.processes * (machines or 1):
        yield f"num_processes is {processes} on all machines, but the recipe says {resources.processes} on each"
    if config.get("use_cpu") and resources.device == "gpu":
        yield "use_cpu is true, but the recipe asks for GPUs"
    stage = (config.get("deepspeed_config") or {}).get("zero_stage")
    if stage is not None and stage != resources.zero.student:
        yield f"deepspeed_config.zero_stage is {stage}, but the recipe says zero.student: {resources.zero.student}"


def training_conflicts(path: str, training: Mapping[str, Any], processes: int) -> Iterator[str]:
    """Where the file contradicts a training stage's options.

    Args:
        path: the file.
        training: the stage's options; what it does not have is not compared.
        processes: on all machines.

    Raises:
        ValueError: the file cannot be read.
    """
    config = read_config(path)
    deepspeed = config.get("deepspeed_config") or {}
    precision, dtype = config.get("mixed_precision"), training.get("dtype")
    if None not in (precision, dtype) and PRECISIONS.get(precision) != dtype:
        means = f"means dtype: {PRECISIONS[precision]}" if precision in PRECISIONS else "has no counterpart here"
        yield f"{path}: mixed_precision: {precision} {means}, but the stage has dtype: {dtype}"
    clip, norm = deepspeed.get("gradient_clipping", "auto"), training.get("clip_norm")
    if norm is not None and clip != "auto" and float(clip) != norm:
        yield f"{path}: deepspeed_config.gradient_clipping is {clip}, but the stage has clip_norm: {norm}"
    passes, batch = deepspeed.get("gradient_accumulation_steps", "auto"), training.get("batch_windows")
    if batch and passes != "auto" and batch % processes == 0:
        ours = batch // processes // (training.get("micro_batch_windows") or batch // processes)
        if int(passes) != ours:
            yield (
                f"{path}: deepspeed_config.gradient_accumulation_steps is {passes}, but batch_windows: {batch} over "
                f"{processes} processes are {ours} forward passes each; set micro_batch_windows, or write auto"
            )


def command(job: str, resources: Resources, machine: int = 0) -> tuple[str, ...]:
    """The argument vector for one of the machines."""
    config = read_config(str(resources.accelerate_config))
    # accelerate's default port is the same for everyone on this machine.
    port = () if config.get("main_process_port") else ("--main_process_port", str(free_port()))
    number = ("--machine_rank", str(machine)) if machine else ()
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(resources.accelerate_config))
    return (*launch, *port, *number, "--module", MODULE, job)


def machines_to_start_by_hand(resources: Resources) -> range:
    """The machines on which nobody starts processes; with DeepSpeed, accelerate does so through pdsh unless told."""
    config = read_config(str(resources.accelerate_config))
    how = (config.get("deepspeed_config") or {}).get("deepspeed_multinode_launcher", "pdsh")
    if config.get("distributed_type") == "DEEPSPEED" and how != "standard":
        return range(0)
    return range(1, resources.nodes or 1)
