"""The exact command and environment of a stage's processes, recorded so that a person can paste it.

``pipeline.launchers`` has a module for each way to start them; this one chooses, starts and records.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import durable, provenance
from pipeline.executing.devices import gpu_names, gpu_visible
from pipeline.launchers import accelerate, deepspeed, slurm, torchrun
from pipeline.launchers.worker import MODULE
from pipeline.recipe import Resources
from stages.masking import environment_secrets, is_secret_variable, mask_text
from stages.stop_request import HEARTBEAT, RUNNER_VARIABLE

DEEPSPEED_ENVIRONMENT = "deepspeed_env"
"""In the attempt's directory: what DeepSpeed exports to other machines."""

RECORDED_PREFIXES = ("ACCELERATE_", "CUDA_", "DEEPSPEED_", "DS_", "GLOO_", "HIP_", "MASTER_", "NCCL_", "OMP_", "PET_",
                     "ROCR_", "SLURM_", "TORCH_", "UCX_")  # fmt: skip
"""Inherited variables that change how processes find each other and what they run on."""


@dataclass(frozen=True)
class Launch:
    """What will be started.

    Attributes:
        command: the argument vector.
        environment: the variables that are added to the runner's own.
        files: name -> content of files that the command reads from the attempt's directory.
        elsewhere: command lines to start on other nodes, which nobody starts from here.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()

    def text(self) -> str:
        """The same as one shell command that can be pasted anywhere."""
        return f"cd {shlex.quote(os.getcwd())} && {_assignments(self.environment)} {shlex.join(self.command)}\n"


def settled(resources: Resources) -> Resources:
    """The same with nodes and processes as numbers, from the files that the recipe names.

    Raises:
        ValueError: a file is wrong or contradicts the recipe.
    """
    if resources.launcher == "deepspeed":
        resources = deepspeed.settled(resources)
    if resources.launcher == "accelerate":
        resources = accelerate.settled(resources)
    return resources.model_copy(update={"nodes": resources.nodes or 1, "processes": resources.processes or 1})


def problems(resources: Resources) -> Iterator[str]:
    """What keeps this machine from starting ranks as ``resources`` (settled) asks, in words."""
    checks = {"torchrun": torchrun.problems, "deepspeed": deepspeed.problems, "slurm": slurm.problems}
    if resources.launcher in checks:
        yield from checks[resources.launcher](resources)


def starts_elsewhere(resources: Resources) -> bool:
    """Whether ranks may run on machines that this one knows nothing of."""
    by_ssh = resources.launcher == "deepspeed" and deepspeed.uses_ssh(resources)
    return by_ssh or resources.launcher == "slurm"


def build(job: Path, resources: Resources) -> Launch:
    """The launch of ``stages.worker`` on the job file ``job``.

    Args:
        job: the job file, in the attempt's directory.
        resources: settled.

    Raises:
        ValueError: SLURM does not name the nodes of the allocation, or a file is wrong by now.
    """
    environment, path = _environment(resources), str(job)
    if resources.launcher == "torchrun":
        others = range(1, resources.nodes or 1)
        elsewhere = (Launch(torchrun.command(path, resources, node), environment).text() for node in others)
        return Launch(torchrun.command(path, resources), environment, elsewhere=tuple(elsewhere))
    if resources.launcher == "deepspeed":
        exported = deepspeed.environment_file(environment)
        environment |= {"DS_ENV_FILE": str(job.parent / DEEPSPEED_ENVIRONMENT)}
        return Launch(deepspeed.command(path, resources), environment, {DEEPSPEED_ENVIRONMENT: exported})
    if resources.launcher == "slurm":
        return Launch(slurm.command(path, resources), environment | slurm.variables(resources))
    if resources.launcher == "accelerate":
        others = accelerate.machines_to_start_by_hand(resources)
        elsewhere = (Launch(accelerate.command(path, resources, machine), environment).text() for machine in others)
        return Launch(accelerate.command(path, resources), environment, elsewhere=tuple(elsewhere))
    return Launch((sys.executable, "-m", MODULE, path), environment)


def start(launch: Launch, attempt: Path, keep_open: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a stage in a process group of its own, its output in the attempt's ``log.txt``.

    The log is a file, not a pipe, so that a stage that outlives its runner can still write while it saves.

    Args:
        launch: what to start; recorded as ``cmd.txt`` and ``env.json``.
        attempt: the attempt's directory.
        keep_open: descriptors that the stage inherits: the locks that it must hold as long as it lives.
    """
    (attempt / HEARTBEAT).touch()
    durable.write_text(attempt / "cmd.txt", launch.text())
    durable.write_json(attempt / "env.json", _record(launch))
    for name, content in launch.files.items():
        durable.write_text(attempt / name, content)
    with (attempt / "log.txt").open("ab") as log:
        return subprocess.Popen(
            launch.command,
            env={**os.environ, **launch.environment, RUNNER_VARIABLE: f"{socket.gethostname()}:{os.getpid()}"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )


def recorded_environment() -> dict[str, str]:
    """The inherited variables that change how stages run; none of them is secret."""
    secrets = environment_secrets()
    return {
        name: mask_text(value, secrets)
        for name, value in sorted(os.environ.items())
        if name.startswith(RECORDED_PREFIXES) and not is_secret_variable(name)
    }


def _record(launch: Launch) -> dict[str, Any]:
    """What the command ran with, for ``env.json``; nothing of it is secret."""
    return {
        "environment": dict(launch.environment),
        "inherited": recorded_environment(),
        "versions": provenance.versions(),
        "host": socket.gethostname(),
        "gpus": list(gpu_names()),
        "directory": os.getcwd(),
    }


def _assignments(environment: Mapping[str, str]) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(environment.items()))


def _environment(resources: Resources) -> dict[str, str]:
    variables = {
        "DISABLE_MLFLOW_INTEGRATION": "TRUE",  # only the runner talks to MLflow
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": str(resources.threads_per_process),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve the other processes of a small machine
        "PYTHONUNBUFFERED": "1",  # the runner reads the log as it grows
        "TOKENIZERS_PARALLELISM": "false",
    }
    if resources.launcher in ("torchrun", "accelerate"):
        # torchrun kills its workers this long after SIGTERM; its default of 30 s cuts a save short. And it dies of
        # SIGUSR1 unless it is told to pass it on.
        variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(int(resources.grace_seconds))
        variables["PET_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    if resources.device == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
    if resources.device == "cpu" or not (starts_elsewhere(resources) or gpu_visible()):
        variables["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks for a compiler before it gives up on a GPU
    return variables
