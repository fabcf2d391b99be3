"""Training stages in several processes for tests: one server imports what they need once, and forks them from there."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import kill_points

os.environ.setdefault("DS_ACCELERATOR", "cpu")

_FORK_FROM = multiprocessing.get_context("forkserver")
_FORK_FROM.set_forkserver_preload(
    [
        "stages.distill",
        "stages.training.data.aligner",
        "stages.training.backends.deepspeed_backend",
        "stages.training.run",
        "stages.training.teachers.split_teacher",
        "deepspeed.ops.op_builder",
        "deepspeed.runtime.zero.muon.muon_optimizer",  # it imports torch's compiler
        "transformers.conversion_mapping",
        "transformers.integrations.deepspeed",
        "transformers.models.llama.modeling_llama",
    ]
)
_TIMEOUT_SECONDS = 240


@dataclass(frozen=True)
class Done:
    """How the processes of one launch ended.

    Attributes:
        codes: exit code of every rank; negative is the signal that killed it.
        text: what all of them printed.
    """

    codes: tuple[int, ...]
    text: str


def write_job(
    root: Path, inputs: Mapping[str, Path], config: Any, resources: Mapping[str, Any], *, stage: str = "distill"
) -> Path:
    """The job file of a training stage whose directories lie in ``root``."""
    for name in ("work", "out", "attempt"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "attempt" / "outcome.json").unlink(missing_ok=True)
    job = {
        "schema_version": 2,
        "stage": stage,
        "uses": stage,
        "module": {"distill": "stages.distill:Distill"}[stage],
        "config": config.model_dump(mode="json", exclude_unset=True),
        "inputs": {name: {name: str(path)} for name, path in inputs.items()},
        "resources": resources,
        **{name: str(root / name) for name in ("cache", "work", "out", "attempt")},
    }
    path = root / "job.json"
    path.write_text(json.dumps(job))
    return path


def run(job: Path, processes: int, *, killed_at: tuple[int, int] | None = None) -> Done:
    """Run a job file in forked processes, as a launcher would, and wait for all.

    Args:
        job: what ``write_job`` wrote.
        processes: how many ranks.
        killed_at: (rank, number): that rank dies of SIGKILL right before its ``number``-th change below ``work``. It
            takes the others with it, as a launcher does.
    """
    started = start(job, processes, killed_at=killed_at)
    if killed_at is not None:
        started[killed_at[0]].join(_TIMEOUT_SECONDS)
        for process in started if started[killed_at[0]].exitcode else ():
            process.kill()
    return finish(job, started)


def start(job: Path, processes: int, *, killed_at: tuple[int, int] | None = None) -> list[BaseProcess]:
    """Fork the processes of a job file, in the order of their ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    numbers = [killed_at[1] if killed_at is not None and killed_at[0] == rank else None for rank in range(processes)]
    started = [
        _FORK_FROM.Process(target=_work, args=(str(job), rank, processes, port, number))
        for rank, number in enumerate(numbers)
    ]
    for process in started:
        process.start()
    return started


def finish(job: Path, started: list[BaseProcess]) -> Done:
    """Wait for the processes that ``start`` gave."""
    for process in started:
        process.join(_TIMEOUT_SECONDS)
    late = [process for process in started if process.exitcode is None]
    for process in late:
        process.kill()
        process.join()
    text = "".join((job.parent / f"rank-{rank}.log").read_text() for rank in range(len(started)))
    assert not late, f"{len(late)} processes hung:\n{text[-3000:]}"
    return Done(tuple(process.exitcode for process in started), text)


def _work(job: str, rank: int, processes: int, port: int, killed_at: int | None) -> None:
    log = os.open(Path(job).parent / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    import torch

    from stages.worker import run_job

    torch.set_num_threads(1)
    if killed_at is not None:
        kill_points.die_at(killed_at, Path(job).parent / "work")
    code = run_job(Path(job))
    print("in a group:", torch.distributed.is_initialized())
    sys.stdout.flush()
    sys.exit(code)
