"""The exact command and environment of a stage process, recorded so that a person can paste it.

``local`` starts one Python process, ``torchrun`` several that train together on this node.
"""

from __future__ import annotations

import glob
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import durable, provenance
from pipeline.recipe import Resources


@dataclass(frozen=True)
class Launch:
    """What will be started.

    Attributes:
        command: the argument vector.
        environment: the variables that are added to the runner's own.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]

    def text(self) -> str:
        """The same as one shell command that can be pasted in this directory."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        return f"cd {shlex.quote(os.getcwd())} && {' '.join([*variables, shlex.join(self.command)])}\n"


def build(job: Path, resources: Resources) -> Launch:
    """The launch of ``stages.worker`` on the job file ``job``."""
    worker = ("-m", "stages.worker", str(job))
    if resources.launcher == "torchrun":
        distributed = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(resources.processes))
        return Launch((sys.executable, *distributed, *worker), _environment(resources))
    return Launch((sys.executable, *worker), _environment(resources))


def start(launch: Launch, attempt: Path, keep_open: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a stage in a process group of its own, its output in the attempt's ``log.txt``.

    The log is a file, not a pipe, so that a stage that outlives its runner can still write while it saves.

    Args:
        launch: what to start; recorded as ``cmd.txt`` and ``env.json``.
        attempt: the attempt's directory.
        keep_open: descriptors that the stage inherits: the locks that it must hold as long as it lives.
    """
    durable.write_text(attempt / "cmd.txt", launch.text())
    durable.write_json(
        attempt / "env.json", {"environment": dict(launch.environment), "versions": provenance.versions()}
    )
    with (attempt / "log.txt").open("ab") as log:
        return subprocess.Popen(
            launch.command,
            env={**os.environ, **launch.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )


def _environment(resources: Resources) -> dict[str, str]:
    variables = {
        "DISABLE_MLFLOW_INTEGRATION": "TRUE",  # only the runner talks to MLflow
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": str(resources.threads_per_process),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve the other processes of a small machine
        "PYTHONUNBUFFERED": "1",  # the runner reads the log as it grows
        "TOKENIZERS_PARALLELISM": "false",
    }
    if resources.launcher == "torchrun":
        # torchrun kills its workers this long after SIGTERM; its default of 30 s cuts a save short
        variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(int(resources.grace_seconds))
    if not gpu_visible():
        variables["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks for a compiler before it gives up on a GPU
    return variables


def gpu_visible() -> bool:
    """Whether a stage would find a GPU, judged by device files so that torch need not be imported."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/kfd"))
