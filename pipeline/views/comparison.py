"""Runs side by side: what their recipes differ in, how far each stage is, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.plan import Plan, PlannedStage
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.reading.problems import Location, dotted, leaves
from pipeline.runs import kept_recipe
from pipeline.store import Done, Store
from pipeline.views.render import JSON_SCHEMA_VERSION
from stages import load_stage
from stages.artifacts import EvaluationArtifact

_NAMES = (("name",), ("experiment",))


@dataclass(frozen=True)
class Comparison:
    """What two runs or more have to show.

    Attributes:
        runs: their names, in the order asked for.
        recipe: dotted key -> run -> value, of the keys that differ; a run that lacks the key lacks it here too.
        states: stage -> run -> state; a run without the stage lacks it.
        metrics: ``<stage>.<metric>`` -> run -> final number, of all stages but evaluations.
        evaluations: stage -> the merged report of the runs that have finished it, the form of ``report.json``.
        curves: stage -> run -> its training, the form of ``read_training``; of the runs that have finished it.
    """

    runs: tuple[str, ...]
    recipe: Mapping[str, Mapping[str, Any]]
    states: Mapping[str, Mapping[str, str]]
    metrics: Mapping[str, Mapping[str, float]]
    evaluations: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "schema_version": JSON_SCHEMA_VERSION,
            "runs": list(self.runs),
            "recipe": self.recipe,
            "states": self.states,
            "metrics": self.metrics,
            "evaluations": self.evaluations,
            "curves": self.curves,
        }


def compare(names: Sequence[str], runs: Path) -> Comparison:
    """Compare the runs ``names`` below ``runs``, as far as each of them is.

    Raises:
        RecipeError: a run is not there, is named twice, or there is only one; or an evaluation is of another format.
    """
    from stages.evaluation.merging import merge

    if len(set(names)) < len(names) or len(names) < 2:
        raise RecipeError(f"compare needs two different runs at least, not {', '.join(names)}")
    plans = {name: make_plan(load_recipe(kept_recipe(name, runs)), runs) for name in names}
    results = {name: _results(plan) for name, plan in plans.items()}
    stages = dict.fromkeys(stage.name for plan in plans.values() for stage in plan.stages)
    reports: dict[str, dict[str, Any]] = {}
    documents: dict[str, dict[str, str]] = {}
    for name, plan in plans.items():
        for stage in plan.stages:
            if stage.name in results[name] and issubclass(load_stage(stage.uses).output, EvaluationArtifact):
                path = Store(runs / "store").entry(stage.uses, stage.key).out / "report.json"
                reports.setdefault(stage.name, {})[name] = json.loads(path.read_text(encoding="utf-8"))
                documents.setdefault(stage.name, {})[name] = _documents(plan, stage)
    try:
        evaluations = {
            stage: merge(found, f"{stage} of {', '.join(found)}", documents[stage]) for stage, found in reports.items()
        }
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return Comparison(
        runs=tuple(names),
        recipe=_differences({name: dict(leaves(plan.recipe.resolved)) for name, plan in plans.items()}),
        states={
            stage: {name: _state(plan, stage) for name, plan in plans.items() if _has(plan, stage)} for stage in stages
        },
        metrics=_metrics(results, set(reports)),
        evaluations=evaluations,
        curves=_curves(plans, results),
    )


def _results(plan: Plan) -> dict[str, Done]:
    store = Store(plan.runs / "store")
    found = {stage.name: store.entry(stage.uses, stage.key).done() for stage in plan.stages}
    return {name: done for name, done in found.items() if done is not None}


def _documents(plan: Plan, stage: PlannedStage) -> str:
    """What identifies the documents that an evaluation read."""
    return " ".join(plan.stage(name).key for name in stage.inputs.get("documents", ()))


def _has(plan: Plan, name: str) -> bool:
    return any(stage.name == name for stage in plan.stages)


def _state(plan: Plan, name: str) -> str:
    return plan.stage(name).state.value


def _differences(values: Mapping[str, Mapping[Location, Any]]) -> dict[str, dict[str, Any]]:
    locations = dict.fromkeys(location for found in values.values() for location in found if location not in _NAMES)
    differences = {}
    for location in locations:
        given = {run: found[location] for run, found in values.items() if location in found}
        if len(given) < len(values) or len({json.dumps(value) for value in given.values()}) > 1:
            differences[dotted(location)] = given
    return differences


def _curves(plans: Mapping[str, Plan], results: Mapping[str, Mapping[str, Done]]) -> dict[str, dict[str, Any]]:
    from stages.evaluation.training_curves import read_training

    outputs: dict[str, dict[str, Path]] = {}
    for run, plan in plans.items():
        for stage in plan.stages:
            if stage.name in results[run]:
                entry = Store(plan.runs / "store").entry(stage.uses, stage.key)
                outputs.setdefault(stage.name, {})[run] = entry.out
    found = {stage: read_training(of_runs) for stage, of_runs in outputs.items()}
    return {stage: curves for stage, curves in found.items() if curves}


def _metrics(results: Mapping[str, Mapping[str, Done]], evaluations: set[str]) -> dict[str, dict[str, float]]:
    metrics: dict[str, dict[str, float]] = {}
    for run, stages in results.items():
        for stage, done in stages.items():
            if stage not in evaluations:
                for name, value in done.metrics.items():
                    metrics.setdefault(f"{stage}.{name}", {})[run] = value
    return metrics
