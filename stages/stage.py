"""What a stage is: its configuration, its inputs, and the context it runs in.

A stage is a function from (configuration, input artifacts) to one artifact directory. This module is imported
to plan a run, so it must stay light: stages import torch and transformers inside ``run``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from stages.artifacts import Artifact
from stages.transient import TransientError


class StageConfig(BaseModel):
    """Base of every stage's configuration: finite values only, frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    reference_files: ClassVar[tuple[str, ...] | None] = None
    """Glob patterns of the files that the stage reads of a referenced directory; only they go into its key. None: all
    files."""

    @property
    def wanted_inputs(self) -> frozenset[str]:
        """The stage's optional inputs that these options need."""
        return frozenset()

    @property
    def welcome_inputs(self) -> frozenset[str]:
        """Optional inputs with a ``source`` that these options use where the recipe gives that, or a stage in its
        place, and can do without."""
        return frozenset()

    def upstream_problems(
        self, upstream: Mapping[str, Mapping[str, StageConfig]]
    ) -> Sequence[tuple[tuple[str | int, ...], str]]:
        """What these options ask of the stages that fill the inputs and these do not give.

        Args:
            upstream: input -> name of a stage -> its options.

        Returns:
            Places in these options, and what is wrong there.
        """
        return ()

    @property
    def named_inputs(self) -> Mapping[str, tuple[str, ...]]:
        """Inputs for which these options name the stages: input -> stages, each of which ``needs`` lists as well.

        A stage that is named here fills no other input, so one artifact kind can serve two purposes.
        """
        return {}

    def check_processes(self, count: int) -> None:
        """Raise ValueError unless ``count`` processes can run the stage together, as a training stage's can."""
        if count > 1:
            raise ValueError(f"this stage runs in one process, not in {count}; use launcher: local")


Switch = Annotated[bool | None, AfterValidator(lambda value: value or None)]
"""An option that is off unless it is true. False is None: saying no changes no key."""


def not_keyed(default: Any, **constraints: Any) -> Any:
    """A field that changes how a stage runs but not what it computes, so it stays out of the cache key."""
    return Field(default, json_schema_extra={"keyed": False}, **constraints)


def reference(default: Any = ..., **constraints: Any) -> Any:
    """A field that names something outside the recipe (see ``stages.references``).

    Its content digest, not its spelling, goes into the cache key.
    """
    return Field(default, json_schema_extra={"reference": True}, **constraints)


@dataclass(frozen=True)
class Input:
    """One declared input of a stage.

    Attributes:
        artifact: the kind of artifact that is accepted.
        source: filled from the recipe's ``models`` or ``data`` section (``teacher``, ``student``, ``tokenizer``,
            ``train``, ``eval``); None means that it comes from the stages listed under ``needs``.
        many: takes every matching stage of ``needs`` instead of exactly one.
        replaceable: a matching stage of ``needs`` takes the place of ``source``.
        optional: exists only where the stage's options want it (``StageConfig.wanted_inputs``).
        replacement: the kind of artifact that takes the place of ``source``, where it is another one than ``artifact``.
    """

    artifact: type[Artifact] | tuple[type[Artifact], ...]
    source: str | None = None
    many: bool = False
    replaceable: bool = False
    optional: bool = False
    replacement: type[Artifact] | None = None


class StageError(Exception):
    """The stage cannot go on for a reason the user can act on. Shown without a traceback; exit code 1."""


class StageUnavailable(StageError, TransientError):
    """What the stage needs from elsewhere did not answer: a hub, a teacher's server; exit code 69.

    Nothing is wrong with the recipe, so such a stage is tried again where its resources ask for ``retries``.
    """


def stage_error(problem: Exception, prefix: str = "") -> StageError:
    """``problem``, whose message is meant for the user, as what ends a stage; ``prefix`` says which option it is of."""
    kind = StageUnavailable if isinstance(problem, TransientError) else StageError
    return kind(f"{prefix}{problem}")


class StageInterrupted(BaseException):
    """The stage saved its state and stopped because it was asked to; exit code 75.

    Derives from BaseException so that no ``except Exception`` on the way takes it for a failure.
    """


class MetricsWriter:
    """Appends one JSON object a line to ``metrics.jsonl``; only rank 0 writes. The runner forwards it to MLflow."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def log(self, step: int, **values: float) -> None:
        """Record ``values`` (plain numbers) at ``step`` (optimiser steps, from 1)."""
        if self._path is None:
            return
        record = {
            "step": int(step),
            "time": time.time(),
            **{name: float(value) for name, value in values.items()},
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _no_progress(line: str) -> None:
    """Progress sink of a context made without one (tests, notebooks)."""


@dataclass
class StageContext:
    """Everything a running stage may touch.

    Attributes:
        config: the stage's validated configuration.
        inputs: input name -> {name of the stage that made it: artifact directory}.
        work: durable scratch; survives attempts with the same key, so checkpoints go here.
        out: the directory that will be published; empty at the start of every attempt.
        metrics: where training curves go.
        progress: prints one line about where the stage is; the runner shows it to the user.
        should_stop: True once the stage was asked to stop; poll it in every long loop, save, and raise
            StageInterrupted.
        resources: how the stage was launched (``pipeline.recipe.Resources`` as a dict).
        cache: a directory for tables that any stage may need again, each a function of its file's name; None for none.
        rank, world_size, local_rank: this process among those of the stage, and among those on its machine.
    """

    config: Any
    inputs: Mapping[str, Mapping[str, Path]]
    work: Path
    out: Path
    metrics: MetricsWriter = field(default_factory=lambda: MetricsWriter(None))
    progress: Callable[[str], None] = _no_progress
    should_stop: Callable[[], bool] = lambda: False
    resources: Mapping[str, Any] = field(default_factory=dict)
    cache: Path | None = None
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def input(self, name: str) -> Path:
        """The directory of an input that has exactly one artifact."""
        (path,) = self.inputs[name].values()
        return path

    def optional_input(self, name: str) -> Path | None:
        """The directory of an optional input; None where the options do not want it."""
        return self.input(name) if name in self.inputs else None


class Stage(Protocol):
    """The seam between the runner and what a recipe can chain. Satisfied structurally; there is no base class.

    ``VERSION`` is part of the cache key: raise it when the same inputs give different outputs. A stage that keeps
    something else in ``work`` than checkpoints says from where it goes on with a static method ``resume_point(work)``
    (``stages.resume_points``).
    """

    VERSION: ClassVar[int]
    Config: ClassVar[type[StageConfig]]
    inputs: ClassVar[Mapping[str, Input]]
    output: ClassVar[type[Artifact]]

    def run(self, ctx: StageContext) -> None:
        """Write the artifact into ``ctx.out``. Never marks itself done: the runner verifies and publishes."""
