"""``pipeline slurm``."""

from __future__ import annotations

import argparse

from pipeline.commands.common import add_recipe, command_line, load
from pipeline.errors import EXIT_OK

SUMMARY = "print a job script for sbatch that runs a recipe and goes on after preemption"

EPILOG = "usual: pipeline slurm RECIPE > job.sbatch, then sbatch job.sbatch"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``slurm``."""
    add_recipe(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from pipeline.job_script import job_script
    from pipeline.reading.launch_checks import check_recipe

    recipe = load(arguments)
    check_recipe(recipe)
    print(job_script(recipe, command_line("run", arguments)), end="")
    return EXIT_OK
