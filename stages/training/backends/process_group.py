"""The processes of one training stage: joining them, and proof that they see each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from stages.stage import StageContext, StageError

DEFAULT_TIMEOUT_MINUTES = 30
"""How long a process waits for the others before it takes them for dead."""


def join(ctx: StageContext, device: torch.device, *, alone: bool = False) -> None:
    """Make this process one of the stage's; nothing for a single process, unless ``alone`` asks for a group of one.

    Args:
        ctx: gives the rank and the number of processes that the launcher announced.
        device: where this process computes; accelerators talk over NCCL, CPUs over gloo.
        alone: DeepSpeed needs a process group even for one process.

    Raises:
        StageError: the processes that met are not the ones that the launcher announced.
    """
    if ctx.world_size == 1 and not alone:
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # One process needs no address to be met at; the environment has one only under a launcher.
        store = dist.HashStore() if ctx.world_size == 1 else None
        backend = "nccl" if device.type == "cuda" else "gloo"
        patience = timedelta(minutes=ctx.resources.get("timeout_minutes", DEFAULT_TIMEOUT_MINUTES))
        dist.init_process_group(backend, store=store, rank=ctx.rank, world_size=ctx.world_size, timeout=patience)
    if (rank(), size()) != (ctx.rank, ctx.world_size):
        raise StageError(
            f"the launcher started process {ctx.rank} of {ctx.world_size}, but torch.distributed says {rank()} of "
            f"{size()}, so the processes would not share the data: start the stage with `pipeline run`, or with the "
            "whole command of its cmd.txt"
        )


def rank() -> int:
    """This process's number among all; 0 for a single one."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def summed(values: Tensor) -> Tensor:
    """Sum of ``values`` over all processes; ``values`` itself where there is one."""
    if size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def gathered(value: Any) -> list[Any]:
    """The values of all processes, by rank: objects that pickle can carry. Collective."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    if size() > 1:
        dist.barrier()


@contextmanager
def left_in_the_end() -> Iterator[None]:
    """Leave the other processes, if they were joined within, however it ends; no collective call may follow."""
    try:
        yield
    finally:
        # Left to the interpreter's exit, gloo's running threads abort the process, now and then.
        if dist.is_initialized():
            dist.destroy_process_group()
