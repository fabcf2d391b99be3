"""What a recipe is: its sections, and the checked and wired whole that ``pipeline.loading`` makes of a file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pipeline.problems import Location
from pipeline.yaml_source import Origin
from stages.stage import StageConfig


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"{name!r} is not a name: use letters, digits, '-' and '_'")
    return name


def _run_name(name: str) -> str:
    if name == "store":
        raise ValueError("'store' is where the results of all recipes are kept: choose another name")
    return _plain_name(name)


class Section(BaseModel):
    """Base of the recipe's own sections: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Zero(Section):
    """How DeepSpeed ZeRO shards the models of a training stage; every process holds the whole teacher."""

    student: Literal[0, 1, 2, 3] = 0
    """0 nothing, 1 optimiser states, 2 also gradients, 3 also parameters."""


class Resources(Section):
    """How one stage is launched. Never part of a cache key."""

    launcher: Literal["local", "torchrun"] = "local"
    """``local``: one plain process; ``torchrun``: ``processes`` of them that train together."""
    processes: int = Field(1, ge=1)
    """Processes per node."""
    threads: int | None = Field(None, ge=1)
    """CPU threads per process; None divides all cores among the processes."""
    zero: Zero = Zero()
    grace_seconds: float = Field(120, ge=0, allow_inf_nan=False)
    """How long a stage may take to save once it was asked to stop."""

    @model_validator(mode="after")
    def _one_process_without_a_launcher(self) -> Resources:
        if self.launcher == "local" and self.processes > 1:
            raise ValueError(f"launcher 'local' starts one process, not {self.processes}; set launcher: torchrun")
        return self

    @property
    def threads_per_process(self) -> int:
        """``threads``, or an equal share of this machine's cores."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.processes)


class _Models(Section):
    teacher: dict[str, Any] | None = None
    student: dict[str, Any] | None = None
    donor: dict[str, Any] | None = None


class _Data(Section):
    train: list[Any] | None = None
    eval: list[Any] | None = None


class StageHeader(BaseModel):
    """What every stage has; its options are checked by the stage's own Config."""

    model_config = ConfigDict(extra="allow", frozen=True)

    uses: str
    needs: tuple[str, ...] = ()


class Outline(Section):
    """The recipe without the stages' own options."""

    name: Annotated[str, AfterValidator(_run_name)]
    seed: int = Field(0, ge=0)
    models: _Models | None = None
    data: _Data | None = None
    stages: dict[Annotated[str, AfterValidator(_plain_name)], StageHeader] = Field(min_length=1)
    resources: dict[str, Resources] | None = None


@dataclass(frozen=True)
class StageSpec:
    """One stage of a recipe, checked and wired.

    Attributes:
        name: its name in the recipe; ``sources/<name>`` for what ``models`` and ``data`` stand for.
        uses: the stage kind (``stages.STAGES``).
        config: validated configuration, defaults filled.
        inputs: input name -> names of the upstream stages, in the order of ``needs``.
        resources: how to launch it.
        section: where in the recipe its options stand, e.g. ``("stages", "distill")``.
        option: the one option that takes the whole section, for sources that have only one.
    """

    name: str
    uses: str
    config: StageConfig
    inputs: Mapping[str, tuple[str, ...]]
    resources: Resources
    section: Location
    option: str | None = None

    def place(self, location: Location) -> Location:
        """Where the recipe gives what stands at ``location`` of ``config``."""
        return (*self.section, *(location if self.option is None else location[1:]))


@dataclass(frozen=True)
class Recipe:
    """A valid recipe.

    Attributes:
        name: the run's directory and the MLflow experiment.
        seed: given to every stage that has a ``seed`` and sets none.
        path: the file; relative references are relative to its directory.
        text: the file as written, for ``runs/<name>/recipe.yaml``.
        resolved: the same as plain values, interpolations and ``--set`` applied and defaults filled, for
            ``runs/<name>/recipe.resolved.yaml``.
        stages: all stages, sources included, in an order in which they can run.
        origins: where each key and list item was written; what is not in it is a default.
        unused: what no stage reads: sections such as ``data.eval``, and stages whose place a section has taken.
    """

    name: str
    seed: int
    path: Path
    text: str
    resolved: Mapping[str, Any]
    stages: Mapping[str, StageSpec]
    origins: Mapping[Location, Origin]
    unused: tuple[str, ...]
