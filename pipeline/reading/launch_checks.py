"""What can be known of a launch before anything is loaded: batches that do not divide, hosts, GPUs, allocations."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline import launch
from pipeline.executing.devices import visible_gpus
from pipeline.launchers import accelerate
from pipeline.plan import Plan
from pipeline.reading.loading import recipe_error
from pipeline.reading.problems import Problem
from pipeline.recipe import Recipe, Resources
from stages.stage import StageConfig, StageError
from stages.training.backends.deepspeed_config import read_given


def check_recipe(recipe: Recipe) -> None:
    """Check what the recipe and the files that its resources name say, on any machine.

    Raises:
        RecipeError: holds every problem: batches that do not divide over the processes, stages that run in one process
            alone, hostfiles and accelerate configurations that are wrong or contradict the recipe, DeepSpeed
            configurations that cannot be read.
    """
    problems = [
        Problem(("resources", name), message)
        for name, spec in recipe.stages.items()
        for message in _recipe_problems(spec.resources, spec.config)
    ]
    for name, spec in recipe.stages.items():
        try:
            read_given(spec.resources.deepspeed)
        except StageError as error:
            problems.append(Problem(("resources", name, "deepspeed"), str(error)))
    if problems:
        raise recipe_error(problems, recipe.path, recipe.origins)


def check_machine(plan: Plan) -> None:
    """Check that this machine can start the stages that are to run, so that a night is not lost to the last of them.

    Raises:
        RecipeError: holds every problem: GPUs that are not there, hosts that do not answer, no SLURM allocation.
    """
    problems = [
        Problem(("resources", stage.name), message)
        for stage in plan.pending
        for message in _machine_problems(stage.resources)
    ]
    if problems:
        raise recipe_error(problems, plan.recipe.path, plan.recipe.origins)


def _recipe_problems(resources: Resources, config: StageConfig) -> Iterator[str]:
    try:
        resources = launch.settled(resources)
    except ValueError as error:
        yield str(error)
        return
    try:
        config.check_processes(resources.world_size)
    except ValueError as error:
        yield str(error)
    if resources.accelerate_config is not None:
        options = config.model_dump(mode="json")
        yield from accelerate.training_conflicts(resources.accelerate_config, options, resources.world_size)


def _machine_problems(resources: Resources) -> Iterator[str]:
    try:
        resources = launch.settled(resources)
    except ValueError as error:
        yield str(error)
        return
    yield from launch.problems(resources)
    if resources.device == "gpu" and not launch.starts_elsewhere(resources):
        yield from _gpu_problems(resources)


def _gpu_problems(resources: Resources) -> Iterator[str]:
    found, wanted = visible_gpus(), resources.processes or 1
    if found == 0:
        yield "it asks for GPUs, but there are none here, or CUDA_VISIBLE_DEVICES hides them; device: cpu does without"
    elif found < wanted:
        yield f"{wanted} processes want a GPU each, but {found} can be seen here; set gpus: {found}, or use more nodes"
