"""Finds tasks of lm-evaluation-harness without a network, and says which cannot be asked."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import torch
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from stages.evaluation.harness.model import unsupported_generation
from stages.evaluation.harness.options import LmEvalOptions
from stages.evaluation.sections import Skipped
from stages.stage import StageError


@dataclass(frozen=True)
class LoadedTasks:
    """What is asked.

    Attributes:
        by_request: requested name -> its tasks; the name of a group or tag stands for several.
        loaded: tasks, groups and their members, as lm-eval's ``evaluate`` takes them.
        skipped: requested names that cannot be asked, and why.
    """

    by_request: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    loaded: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Name -> task."""
        return self.loaded.get("tasks", {})


def load_tasks(options: LmEvalOptions) -> LoadedTasks:
    """Every task of ``options`` that can be asked here.

    Raises:
        StageError: there is no such task, two requests hold the same task, or none at all can be asked.
    """
    include = None if options.include is None else Path(options.include)
    with alone(options.seed):
        manager = _manager(options.tasks, include)
        found: dict[str, Mapping[str, Any]] = {}
        skipped = []
        for name in options.tasks:
            loaded = _load(manager, name, include)
            reason = loaded if isinstance(loaded, str) else _unsuitable(loaded["tasks"], include, options)
            if reason is None:
                found[name] = loaded
            else:
                skipped.append(Skipped(f"task {name}", reason))
    if not found:
        raise StageError(f"lm_eval.tasks: none can be asked: {'; '.join(f'{s.what}: {s.why}' for s in skipped)}")
    by_request = {name: tuple(loaded["tasks"]) for name, loaded in found.items()}
    names = [task for tasks in by_request.values() for task in tasks]
    repeated = sorted({task for task in names if names.count(task) > 1})
    if repeated:
        raise StageError(f"lm_eval.tasks: {', '.join(repeated)} belongs to more than one of the names")
    merged = {
        part: {name: value for loaded in found.values() for name, value in loaded.get(part, {}).items()}
        for part in ("tasks", "groups", "group_map")
    }
    for task in merged["tasks"].values():
        _set_shots(task, options)
    return LoadedTasks(by_request, merged, tuple(skipped))


@contextlib.contextmanager
def alone(seed: int) -> Iterator[None]:
    """lm-eval by itself: without a network, without processes of its own, its log and prints away from standard output,
    and the random numbers that tasks draw from global generators a function of ``seed``; all as before afterwards."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    python, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    offline = [(datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in offline]
    single = os.environ.get("DISABLE_MULTIPROC")
    try:
        for module, name in offline:
            setattr(module, name, True)
        os.environ["DISABLE_MULTIPROC"] = "1"
        logger.setLevel(logging.ERROR)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for (module, name), value in zip(offline, before, strict=True):
            setattr(module, name, value)
        if single is None:
            del os.environ["DISABLE_MULTIPROC"]
        logger.setLevel(level)
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def _manager(names: tuple[str, ...], include: Path | None) -> TaskManager:
    """lm-eval's index of tasks: of ``include`` alone where that has all names, as indexing the others takes seconds."""
    if include is not None and not include.is_dir():
        raise StageError(f"lm_eval.include: {include} is no directory")
    own = None if include is None else TaskManager(include_path=str(include), include_defaults=False)
    if own is not None and set(names) <= set(own.all_tasks):
        return own
    manager = TaskManager(include_path=None if include is None else str(include))
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise StageError(
                f"lm_eval.tasks: {name!r} is neither among lm-eval's tasks nor in lm_eval.include{hint} A file that is "
                "no valid task is not listed."
            )
    return manager


def _load(manager: TaskManager, name: str, include: Path | None) -> Mapping[str, Any] | str:
    """The tasks behind a name, or why there are none. Data that lie beside a task are found from there."""
    place = contextlib.nullcontext() if include is None else contextlib.chdir(include)
    try:
        with place:
            return manager.load([name])
    except Exception as error:  # a task is somebody else's program: it may raise anything
        what = str(error).strip() or type(error).__name__
        return f"it could not be loaded without a network: {what.splitlines()[0]}"


def _unsuitable(tasks: Mapping[str, Task], include: Path | None, options: LmEvalOptions) -> str | None:
    """Why these tasks must not or cannot be asked; None if they can."""
    if not tasks:
        return "there are no tasks in it"
    for name, task in tasks.items():
        config = task.config
        generation = unsupported_generation(getattr(config, "generation_kwargs", None) or {})
        outside = _files_outside(getattr(config, "dataset_kwargs", None) or {}, include)
        if getattr(task, "MULTIMODAL", False):
            return f"{name} shows images or sounds"
        if getattr(task, "UNSAFE_CODE", False):
            return f"{name} runs code that a model wrote"
        if task.OUTPUT_TYPE == "generate_until" and generation:
            return f"{name}: {generation}"
        if outside:
            return f"{name} reads {outside[0]}, which is not below lm_eval.include, so that the cache key misses it"
    return None


def _files_outside(arguments: Mapping[str, Any], include: Path | None) -> list[str]:
    """Local data files that a data set is made of and that do not lie below ``include``."""
    given = arguments.get("data_files") or ()
    values = list(given.values()) if isinstance(given, Mapping) else [given]
    files = [file for value in values for file in ([value] if isinstance(value, str) else value)]
    base = Path.cwd() if include is None else include.resolve()
    local = [file for file in files if "://" not in file]
    return [file for file in local if include is None or not (base / file).resolve().is_relative_to(base)]


def _set_shots(task: Task, options: LmEvalOptions) -> None:
    """As lm-eval's ``simple_evaluate``: a task that fixes 0 examples keeps them, and one that says nothing has 0."""
    own = task.get_config("num_fewshot")
    if own is None or (options.num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=options.num_fewshot or 0)
