"""``pipeline slurm``: a job script for sbatch that runs a recipe and goes on after preemption (runner rule R15).

The runner is started by the script itself, not as a job step. SLURM's signal reaches every process of a step, and an
``srun`` inside one would answer it by killing its tasks; so only the script is signalled (``B:``), and asks the runner.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence

from pipeline import launch
from pipeline.errors import EXIT_INTERRUPTED, RecipeError
from pipeline.recipe import Recipe, Resources

MARGIN_SECONDS = 60
"""What the runner itself needs between the signal and the end, besides the stage's grace."""

_SCRIPT = """\
#!/bin/bash
{directives}

# Runs {recipe} and goes on wherever it was: the same command skips what is done and resumes what is not.
# {margin} s before the time limit, and on preemption where the cluster sends it, SLURM sends SIGTERM to this shell
# alone. The runner is told to stop, every rank saves, and exit code {interrupted} puts the job back into the queue.

cd {directory} || exit 2

{command} &
runner=$!
trap 'kill -TERM "$runner"' TERM USR1
# `wait` returns early whenever a signal arrives.
wait "$runner"; code=$?
while kill -0 "$runner" 2>/dev/null; do wait "$runner"; code=$?; done

if [ "$code" -eq {interrupted} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def job_script(recipe: Recipe, command: str) -> str:
    """The script for a recipe that was checked.

    Args:
        recipe: its stages with ``launcher: slurm`` say how large the job is; one node runs the others.
        command: the command line that runs the recipe.

    Raises:
        RecipeError: two stages ask for different partitions, accounts or other things that a job has one of.
    """
    stages = {name: launch.settled(spec.resources) for name, spec in recipe.stages.items()}
    grace = int(max(resources.grace_seconds for resources in stages.values())) + MARGIN_SECONDS
    directives = [
        f"--job-name={recipe.name}",
        *_size(list(stages.values())),
        *_wishes(stages),
        "--requeue",
        f"--signal=B:TERM@{grace}",
        "--open-mode=append",
        f"--output={recipe.name}-%j.log",
    ]
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {directive}" for directive in directives),
        recipe=recipe.path,
        margin=grace,
        interrupted=EXIT_INTERRUPTED,
        directory=shlex.quote(os.getcwd()),
        command=command,
    )


def _size(stages: Sequence[Resources]) -> Iterator[str]:
    """As large as the largest stage."""
    tasks = max(resources.processes or 1 for resources in stages)
    yield f"--nodes={max(resources.nodes or 1 if resources.launcher == 'slurm' else 1 for resources in stages)}"
    yield f"--ntasks-per-node={tasks}"
    if threads := max((resources.threads or 0 for resources in stages), default=0):
        yield f"--cpus-per-task={threads}"
    if gpus := max((resources.processes or 1 for resources in stages if resources.device == "gpu"), default=0):
        yield f"--gpus-per-node={gpus}"


def _wishes(stages: Mapping[str, Resources]) -> Iterator[str]:
    """What the stages ask for by name; a job can have one of each."""
    for option, flag in (("time", "time"), ("partition", "partition"), ("account", "account"), ("memory", "mem")):
        asked = {getattr(resources.slurm, option) for resources in stages.values()}
        values = sorted(asked - {None})
        if len(values) > 1:
            raise RecipeError(
                f"one job cannot have slurm.{option} {' and '.join(values)}; give the stages the same, or run them as "
                "two recipes"
            )
        yield from (f"--{flag}={value}" for value in values)
    yield from dict.fromkeys(option for resources in stages.values() for option in resources.slurm.options)
