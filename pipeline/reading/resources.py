"""What a recipe's ``resources`` say: how one stage is launched, split, stopped and tried again."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import EXIT_INTERRUPTED


def _host_and_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{address!r} is not host:port, such as node1:29500")
    return address


def _spelled(pattern: str, expected: str) -> AfterValidator:
    """Refuse text that does not match ``pattern``, saying what was expected."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is {expected}")
        return text

    return AfterValidator(check)


class Section(BaseModel):
    """Base of the recipe's own sections: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Zero(Section):
    """What DeepSpeed ZeRO splits over the processes of a training stage, and what it keeps off the GPU."""

    student: Literal[0, 1, 2, 3] = 0
    """Of the student: 0 nothing, 1 optimiser states, 2 also gradients, 3 also parameters."""
    teacher: Literal[0, 3] = 0
    """Of the teacher: 0 nothing, 3 its parameters."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where the student's optimiser states are kept, and its steps taken: ``cpu`` needs ``student`` 1 to 3, ``nvme``
    3."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """Where the student's parameters wait until their layer runs; other than ``none`` needs ``student: 3``."""
    offload_teacher: Literal["none", "cpu"] = "none"
    """Where the teacher's parameters wait until their layer runs; ``cpu`` needs ``teacher: 3``."""
    nvme_path: str | None = None
    """A directory on a fast local disk, for ``nvme``."""

    @model_validator(mode="after")
    def _offloads_what_it_splits(self) -> Zero:
        for option, value, model, stage in (
            ("offload_optimizer", "cpu", "student", 1),
            ("offload_optimizer", "nvme", "student", 3),
            ("offload_parameters", "cpu", "student", 3),
            ("offload_parameters", "nvme", "student", 3),
            ("offload_teacher", "cpu", "teacher", 3),
        ):
            if getattr(self, option) == value and getattr(self, model) < stage:
                least = f"{stage} or more" if stage < 3 else "3"
                raise ValueError(f"{option}: {value} needs {model}: {least}, not {getattr(self, model)}")
        wants_nvme = "nvme" in (self.offload_optimizer, self.offload_parameters)
        if wants_nvme and self.nvme_path is None:
            raise ValueError("nvme needs nvme_path, a directory on a fast local disk")
        if self.nvme_path is not None and not wants_nvme:
            raise ValueError("nvme_path has no effect without offload_optimizer: nvme or offload_parameters: nvme")
        return self


class Slurm(Section):
    """What a job script asks of SLURM for a stage, in sbatch's own words (``pipeline slurm``)."""

    time: Annotated[str, _spelled(r"(\d+-)?\d+(:\d{1,2}){0,2}", "no time limit, such as 12:00:00")] | None = None
    """Time limit: minutes, ``hours:minutes:seconds`` or ``days-hours``."""
    partition: str | None = None
    """Where to queue; None for the cluster's default."""
    account: str | None = None
    """Whom to charge; None for the user's default."""
    memory: Annotated[str, _spelled(r"\d+[KMGT]?", "no amount of memory, such as 200G")] | None = None
    """Memory per node, such as ``200G``; None for the cluster's default, ``0`` for all of it."""
    options: tuple[Annotated[str, _spelled(r"--[a-z].*", "no option of sbatch, such as --qos=long")], ...] = ()
    """Further options of sbatch, such as ``--qos=long``; each becomes a line of its own."""


class Resources(Section):
    """How one stage is launched. Never part of a cache key."""

    launcher: Literal["local", "torchrun", "deepspeed", "slurm", "accelerate"] = "local"
    """``local``: one plain process. The others start ``processes`` on each of ``nodes``, which train together."""
    processes: int | None = Field(None, ge=1)
    """Processes per node; None for one, or for what ``hostfile`` or ``accelerate_config`` says."""
    gpus: int | None = Field(None, ge=1, strict=True)
    """Processes per node, each on a GPU of its own: short for ``processes`` with ``device: gpu``."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """``auto`` takes a GPU where there is one, ``gpu`` is an error where there is none, ``cpu`` leaves GPUs alone."""
    nodes: int | None = Field(None, ge=1)
    """Machines; None for one, or for what ``hostfile`` or ``accelerate_config`` says."""
    rendezvous: Annotated[str, AfterValidator(_host_and_port)] | None = None
    """``host:port`` at which the processes of several nodes meet, on the node of this command."""
    hostfile: str | None = None
    """A file with a line ``host slots=N`` for each machine of ``launcher: deepspeed``."""
    accelerate_config: str | None = None
    """The file that ``accelerate config`` wrote; it is checked against the recipe."""
    slurm: Slurm = Slurm()
    """What ``pipeline slurm`` asks for besides nodes, processes, threads and GPUs."""
    threads: int | None = Field(None, ge=1)
    """CPU threads per process; None divides all cores among the processes."""
    zero: Zero = Zero()
    deepspeed: str | dict[str, Any] | None = None
    """DeepSpeed's own configuration, as a JSON file or in place, for what ``zero`` and the stage's options leave open;
    ``"auto"`` takes what they say."""
    grace_seconds: float = Field(120, ge=0, allow_inf_nan=False)
    """How long a stage may take to save once it was asked to stop."""
    timeout_minutes: int = Field(30, ge=1)
    """How long a process waits for the others before it takes them for dead and fails."""
    retries: int = Field(0, ge=0, le=100)
    """How often a stage that failed is tried again in the same run, from what it saved. Only where the failure may
    pass: the hub did not answer (exit code 69), or a code of ``retry_on``. What a stage itself finds wrong is final."""
    retry_on: tuple[Annotated[int, Field(ge=1, le=255, strict=True)], ...] = ()
    """Further exit codes after which a stage is tried again, as a shell says them: 137 for a process that was killed
    (128 + 9, SIGKILL: out of memory), 1 for any error that a library raised."""

    @model_validator(mode="before")
    @classmethod
    def _gpus_are_processes(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("gpus"), int):
            return values
        for name, meant in (("processes", values["gpus"]), ("device", "gpu")):
            if values.get(name, meant) != meant:
                raise ValueError(
                    f"gpus: {values['gpus']} means {name}: {meant}, not {values[name]}; remove one of them"
                )
        return values | {"processes": values["gpus"], "device": "gpu"}

    @model_validator(mode="after")
    def _launcher_understands_the_rest(self) -> Resources:
        processes, nodes = self.processes or 1, self.nodes or 1
        if self.launcher == "local" and processes > 1:
            raise ValueError(f"launcher 'local' starts one process, not {processes}; set launcher: torchrun")
        if self.launcher == "local" and nodes > 1:
            raise ValueError(f"launcher 'local' stays on this machine; set launcher: slurm for {nodes} nodes")
        for option, launchers in _LAUNCHERS_WITH.items():
            if getattr(self, option) is not None and self.launcher not in launchers:
                raise ValueError(
                    f"{option} has no effect with launcher: {self.launcher}; remove it, or set launcher: "
                    f"{' or '.join(launchers)}"
                )
        if self.launcher == "accelerate" and self.accelerate_config is None:
            raise ValueError("launcher: accelerate needs accelerate_config, the file that `accelerate config` writes")
        if self.launcher == "deepspeed" and nodes > 1 and self.hostfile is None:
            raise ValueError(f"launcher: deepspeed needs a hostfile to find {nodes} nodes")
        return self

    @model_validator(mode="after")
    def _retries_mean_something(self) -> Resources:
        if self.retry_on and not self.retries:
            raise ValueError("retry_on has no effect without retries; say how many, as in retries: 2")
        if EXIT_INTERRUPTED in self.retry_on:
            raise ValueError(
                f"retry_on: {EXIT_INTERRUPTED} is how a stage ends that was asked to save and stop; the same command "
                "goes on, a retry would act against who asked"
            )
        return self

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return (self.nodes or 1) * (self.processes or 1)

    @property
    def threads_per_process(self) -> int:
        """``threads``, or an equal share of the cores that this process may use."""
        return self.threads or max(1, _usable_cores() // (self.processes or 1))

    def shared_by(self, jobs: int) -> Resources:
        """The same with an equal share of the cores, if so many stages may run at the same time."""
        if jobs == 1 or self.threads is not None or self.launcher != "local":
            return self
        return self.model_copy(update={"threads": max(1, _usable_cores() // jobs)})

    def located(self, directory: Path) -> Resources:
        """The same with paths that do not depend on where the recipe is; they are relative to ``directory``."""
        files = {name: getattr(self, name) for name in ("hostfile", "accelerate_config", "deepspeed")}
        return self.model_copy(
            update={name: str((directory / file).resolve()) for name, file in files.items() if isinstance(file, str)}
        )


_LAUNCHERS_WITH = {
    "rendezvous": ("torchrun", "deepspeed"),
    "hostfile": ("deepspeed",),
    "accelerate_config": ("accelerate",),
}


def _usable_cores() -> int:
    """Cores that this process may run on: inside a SLURM job these are not all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
