"""All runs at a glance: how far each is, from what it keeps and from which results exist, without reading a recipe.

A thousand runs of a sweep are told apart in a moment. What only a plan can tell is left to it: whether results are
whole, and whether they are still what the recipe asks for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import durable
from pipeline.errors import PipelineError
from pipeline.executing.locks import is_locked
from pipeline.plan import Plan
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.runs import kept_recipes
from pipeline.store import Entry, Store

KEPT = "results.json"
"""In a run's directory: name of a stage -> where in the store its result is, or will be."""


@dataclass(frozen=True)
class RunOverview:
    """One run.

    Attributes:
        name: its name.
        state: ``running`` while some process executes it; ``finished`` if every stage has a result; otherwise how the
            first stage without one ended, ``failed`` or ``interrupted``, or ``unfinished`` if it was not begun;
            ``unknown`` if what the run keeps cannot be read.
        made: how many stages have a result.
        stages: how many there are.
        changed: when something last happened to it, in seconds since the epoch; None if that is not recorded.
        detail: the stage that failed or was interrupted, or what cannot be read.
    """

    name: str
    state: Literal["running", "finished", "failed", "interrupted", "unfinished", "unknown"]
    made: int
    stages: int
    changed: float | None
    detail: str = ""


def keep(plan: Plan) -> None:
    """Record where the results of a run are, for ``overview``."""
    durable.write_json(plan.run_directory / KEPT, _places(plan))


def left_behind(plan: Plan) -> list[str]:
    """The stages of which the run has finished results that ``plan`` does not ask for."""
    store, wanted = plan.runs / "store", _places(plan)
    return [
        stage
        for stage, place in (kept_places(plan.run_directory) or {}).items()
        if place != wanted.get(stage) and (store / place / "DONE.json").is_file()
    ]


def _places(plan: Plan) -> dict[str, str]:
    """Stage -> its entry, relative to the store."""
    store = Store(Path())
    return {stage.name: str(store.entry(stage.uses, stage.key).path) for stage in plan.stages}


def overview(runs: Path) -> Iterator[RunOverview]:
    """Every run below ``runs``, by name. Takes no lock and writes nothing."""
    store = str(runs / "store")
    made: dict[str, bool] = {}

    def is_made(place: str) -> bool:
        """Many runs share results: each is looked for once."""
        if place not in made:
            made[place] = os.path.exists(os.path.join(store, place, "DONE.json"))
        return made[place]

    for name, recipe in kept_recipes(runs).items():
        directory = recipe.parent
        try:
            places = places_of(recipe, runs)
        except PipelineError as error:
            yield RunOverview(name, "unknown", 0, 0, _changed(directory), str(error).splitlines()[0])
            continue
        missing = [stage for stage, place in places.items() if not is_made(place)]
        state, detail = _state(directory, missing, {stage: runs / "store" / places[stage] for stage in missing})
        yield RunOverview(name, state, len(places) - len(missing), len(places), _changed(directory), detail)


def _state(directory: Path, missing: list[str], entries: dict[str, Path]) -> tuple[str, str]:
    if is_locked(directory / "run.lock"):
        return "running", ""
    if not missing:
        return "finished", ""
    for stage in missing:
        attempt = Entry(entries[stage], "").last_attempt()
        if attempt is not None:
            return ("failed" if attempt.state == "failed" else "interrupted"), stage
    return "unfinished", ""


def kept_places(directory: Path) -> dict[str, str] | None:
    """What ``keep`` wrote in a run's directory; None if it is missing or damaged."""
    try:
        places = json.loads((directory / KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return places if isinstance(places, dict) and all(isinstance(place, str) for place in places.values()) else None


def places_of(recipe: Path, runs: Path) -> dict[str, str]:
    """The same of the run that keeps ``recipe``; by way of a plan, if it keeps nothing else or something damaged.

    Raises:
        PipelineError: there can be no plan.
    """
    return kept_places(recipe.parent) or _places(make_plan(load_recipe(recipe), runs))


def _changed(directory: Path) -> float | None:
    try:
        return (directory / "events.jsonl").stat().st_mtime
    except OSError:
        return None
