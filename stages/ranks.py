"""The processes of a stage: which of them this one is, and a record of each that tells whether it still lives.

A rank keeps ``ranks/<rank>.json`` in the attempt's directory, under an ``flock`` for as long as it lives: the kernel
gives it up however the process dies, and a shared file system shows it on every machine. A record that says "running"
and is not locked is that of a rank that died without a word.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

DIRECTORY = "ranks"
"""Inside an attempt's directory."""

NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What ``flock`` fails with on a file system that has none."""

State = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Place:
    """This process among the ``world_size`` of its stage, and among those on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def variables(self) -> dict[str, str]:
        """The same for ``torch.distributed``."""
        return {name.upper(): str(value) for name, value in asdict(self).items()}


def find_place(environment: Mapping[str, str], launcher: str | None, local_rank: int | None = None) -> Place:
    """What the launcher says of this process.

    Args:
        environment: of this process. SLURM's variables count only under ``launcher: slurm``: inside an allocation, a
            process that SLURM did not start has those of the shell that did.
        launcher: as in the recipe's ``resources``.
        local_rank: as DeepSpeed's launcher gives it on the command line.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if launcher == "slurm" and "RANK" not in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    rank, world_size, local = (environment.get(name) for name in names)
    return Place(int(rank or 0), int(world_size or 1), int(local or local_rank or 0))


class RankRecord:
    """The record of this process, from now until it dies."""

    def __init__(self, attempt: Path, place: Place) -> None:
        directory = attempt / DIRECTORY
        directory.mkdir(exist_ok=True)
        self._facts = {"rank": place.rank, "host": socket.gethostname(), "pid": os.getpid(), "locked": True}
        self._descriptor: int | None = os.open(directory / f"{place.rank}.json", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)  # waits only for someone who is just looking
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            self._facts["locked"] = False  # only this machine can tell whether the process lives
        os.register_at_fork(after_in_child=self._disown)
        self.set("running")

    def set(self, state: State) -> None:
        """Write down how this process is doing."""
        if self._descriptor is None:
            return
        content = json.dumps({**self._facts, "state": state}).encode()
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))

    def _disown(self) -> None:
        """In a process that was forked from this one, such as a data worker: it must not seem to be the rank."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def log_path(attempt: Path, rank: int) -> Path:
    """Where a rank's output goes: of the first to the attempt's log, of each other to a file of its own."""
    return attempt / DIRECTORY / f"{rank}.log" if rank else attempt / "log.txt"


def redirect_output(attempt: Path, rank: int) -> None:
    """Send this process's output, also that of libraries, to ``log_path``; the first rank's goes there anyway."""
    if rank == 0:
        return
    path = log_path(attempt, rank)
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
