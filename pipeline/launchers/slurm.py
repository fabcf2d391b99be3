"""``srun`` inside a SLURM allocation: one task a rank, on nodes that the job already has.

Two things about srun decide how a stage is stopped. SIGTERM to srun itself kills all its tasks at once, so the runner
never sends it; SIGUSR1 is passed on to every task, and each takes it for a request to save.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from pipeline.launchers.worker import MODULE
from pipeline.recipe import Resources

JOB = "SLURM_JOB_ID"
NODES = "SLURM_JOB_NODELIST"


def inside_allocation() -> bool:
    """Whether this process runs in a SLURM job."""
    return JOB in os.environ and NODES in os.environ


def hosts() -> list[str]:
    """The nodes of the allocation, in SLURM's order.

    Raises:
        ValueError: SLURM does not say.
    """
    command = ["scontrol", "show", "hostnames", os.environ[NODES]]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"`{' '.join(command)}` does not name the nodes of this allocation: {error}") from None
    if not listed:
        raise ValueError(f"`{' '.join(command)}` names no node")
    return listed


def command(job: str, resources: Resources) -> tuple[str, ...]:
    """The argument vector, for the first nodes of the allocation.

    Raises:
        ValueError: SLURM does not name them.
    """
    nodes, processes = resources.nodes or 1, resources.processes or 1
    size = (f"--nodes={nodes}", f"--ntasks={nodes * processes}", f"--ntasks-per-node={processes}")
    # The job script's own step must not keep a CPU or a GPU from this one; ranks pick their GPU by SLURM_LOCALID.
    share = ("--overlap", "--cpu-bind=none", f"--cpus-per-task={resources.threads_per_process}")
    gpus = (f"--gpus-per-node={processes}", "--gpu-bind=none") if resources.device == "gpu" else ()
    place = f"--nodelist={','.join(hosts()[:nodes])}"
    # One dead rank ends the step: the others would wait for it.
    return ("srun", *size, place, *share, *gpus, "--kill-on-bad-exit=1", sys.executable, "-m", MODULE, job)


def variables(resources: Resources) -> dict[str, str]:
    """What the ranks need to find each other; their numbers come from srun.

    Raises:
        ValueError: SLURM does not name the nodes.
    """
    # Below the ports that systems give out by themselves; two jobs on one node rarely agree modulo 20,000.
    port = 10_000 + int(os.environ[JOB]) % 20_000
    return {"MASTER_ADDR": hosts()[0], "MASTER_PORT": str(port)}


def problems(resources: Resources) -> Iterator[str]:
    """What stands in the way of starting, in words."""
    if not inside_allocation():
        yield (
            "launcher: slurm works inside an allocation; get one with `pipeline slurm RECIPE > job.sbatch` and `sbatch "
            "job.sbatch`, or with salloc"
        )
        return
    if shutil.which("srun") is None:
        yield "there is no srun on this node"
    try:
        available = hosts()
    except ValueError as error:
        yield str(error)
        return
    if len(available) < (resources.nodes or 1):
        yield f"{resources.nodes} nodes are asked for, but this allocation has {len(available)}: {', '.join(available)}"
