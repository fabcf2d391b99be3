"""The plan: what would run, and why. Made by ``planner.py``, shown by ``plan``, executed by ``runner.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe, Resources
from stages.stage import StageConfig


class State(StrEnum):
    """What the store knows of a stage's key."""

    FRESH = "fresh"
    STALE = "stale"
    MISSING = "missing"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    RUNNING = "running"


class Action(StrEnum):
    """What a run will do with a stage; ``leave``: it is not up to date, and was not selected."""

    SKIP = "skip"
    RUN = "run"
    RESUME = "resume"
    LEAVE = "leave"


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan.

    Attributes:
        name: the stage's name in the recipe; ``sources/<name>`` for what the recipe's models and data need.
        uses: the stage kind.
        config: validated configuration, defaults filled.
        inputs: input name -> names of the upstream stages, in the order of ``needs``.
        key: sha256 hex of ``ingredients`` (runner rule R1).
        ingredients: the JSON object that was hashed; kept beside the result so that a later plan can show a diff.
        resources: how to launch it; never part of the key.
        state, action, reason: what is there, what will be done, and why, for a person.
        forced: run it even if its result turns out to be up to date.
        restarted: discard what an interrupted attempt left to go on from.
    """

    name: str
    uses: str
    config: StageConfig
    inputs: Mapping[str, tuple[str, ...]]
    key: str
    ingredients: Mapping[str, Any]
    resources: Resources
    state: State
    action: Action
    reason: str
    forced: bool = False
    restarted: bool = False

    @property
    def upstream(self) -> tuple[str, ...]:
        """Names of all upstream stages, each once."""
        return tuple(dict.fromkeys(name for names in self.inputs.values() for name in names))


@dataclass(frozen=True)
class Plan:
    """All stages of a recipe in an order in which they can run."""

    recipe: Recipe
    runs: Path
    stages: tuple[PlannedStage, ...]

    @property
    def run_directory(self) -> Path:
        """``runs/<recipe name>``."""
        return self.runs / self.recipe.name

    def stage(self, name: str) -> PlannedStage:
        """The stage called ``name``."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def pending(self) -> tuple[PlannedStage, ...]:
        """The stages that would run."""
        return tuple(stage for stage in self.stages if stage.action in (Action.RUN, Action.RESUME))

    @property
    def twins(self) -> Mapping[str, str]:
        """Stages that would run, but that another is to make the same result before: their names -> its name."""
        first: dict[str, str] = {}
        for stage in self.pending:
            first.setdefault(stage.key, stage.name)
        return {stage.name: first[stage.key] for stage in self.pending if first[stage.key] != stage.name}
