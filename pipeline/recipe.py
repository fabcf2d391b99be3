"""What a recipe is: its sections, and the checked and wired whole that ``pipeline.reading.loading`` makes of a file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.reading.problems import Location
from pipeline.reading.resources import Resources, Section
from pipeline.reading.yaml_source import Origin
from stages.stage import StageConfig

LONGEST_NAME = 120
"""Characters of the name of a run or a stage: names become those of directories and files, with more behind them."""


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"{name!r} is not a name: use letters, digits, '-' and '_'")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a name of {len(name)} characters: use at most {LONGEST_NAME}")
    return name


def run_name(name: str) -> str:
    """``name``, if a run may be called so.

    Raises:
        ValueError: it is no plain name, or taken.
    """
    if name in _TAKEN:
        raise ValueError(f"{name!r} is where {_TAKEN[name]} are kept: choose another name")
    return _plain_name(name)


_TAKEN = {"store": "the results of all recipes", "cache": "tables that all runs use"}


class _Models(Section):
    """Each is checked as the stage that it stands for (``SOURCE_STAGES``)."""

    teacher: Any = None
    student: Any = None
    donor: Any = None


class _Data(Section):
    """Likewise."""

    train: Any = None
    eval: Any = None


class StageHeader(BaseModel):
    """What every stage has; its options are checked by the stage's own Config."""

    model_config = ConfigDict(extra="allow", frozen=True)

    uses: str
    needs: tuple[str, ...] = ()


class Outline(Section):
    """The recipe without the stages' own options."""

    name: Annotated[str, AfterValidator(run_name)]
    experiment: str | None = Field(None, min_length=1)
    """MLflow experiment; the name by default. The runs of a sweep have names of their own and share one."""
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

    @property
    def upstream(self) -> tuple[str, ...]:
        """Names of all upstream stages, each once."""
        return tuple(dict.fromkeys(name for names in self.inputs.values() for name in names))

    def place(self, location: Location) -> Location:
        """Where the recipe gives what stands at ``location`` of ``config``."""
        return (*self.section, *(location if self.option is None else location[1:]))


@dataclass(frozen=True)
class Recipe:
    """A valid recipe.

    Attributes:
        name: the run's directory.
        experiment: in MLflow.
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
    experiment: str
    seed: int
    path: Path
    text: str
    resolved: Mapping[str, Any]
    stages: Mapping[str, StageSpec]
    origins: Mapping[Location, Origin]
    unused: tuple[str, ...]

    @property
    def directory(self) -> Path:
        """What relative references start from, an absolute path without ``..``."""
        return Path(os.path.normpath(self.path.absolute().parent))
