"""What a run looks like in MLflow: experiment, parent run, nested runs of stages, their tags, parameters and numbers.

The conventions are here, once: ``pipeline.tracking.tracker`` follows them while a run is at work, and
``pipeline.tracking.sync`` afterwards, from what the run keeps.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipeline import provenance
from pipeline.plan import Plan
from pipeline.request import SOURCES
from pipeline.store import Done, Entry
from pipeline.tracking.place import artifact_directory, database_file
from stages import load_stage
from stages.artifacts import ReportArtifact
from stages.masking import VOCABULARY_NAMES, environment_secrets, masked

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

# MLflow's own limits on one log_batch call and on the length of one value
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_VALUE_LENGTH = 6000

STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
"""How an attempt or a run ended -> what MLflow calls it."""


class TrackedStage(Protocol):
    """What has to be known of a stage: of a plan, or read back from the store."""

    @property
    def name(self) -> str:
        """In the recipe."""

    @property
    def uses(self) -> str:
        """Its kind."""

    @property
    def key(self) -> str:
        """Of its result."""

    @property
    def ingredients(self) -> Mapping[str, Any]:
        """What was hashed into the key; ``params`` are its parameters."""


@dataclass(frozen=True)
class TrackedRun:
    """What becomes one parent run: the name, the experiment, and all stages with their keys."""

    name: str
    experiment: str
    stages: Sequence[TrackedStage]

    @classmethod
    def of(cls, plan: Plan) -> TrackedRun:
        """The run that executes ``plan``."""
        return cls(plan.recipe.name, plan.recipe.experiment, plan.stages)

    @property
    def plan_key(self) -> str:
        """By which the parent run is found again; another one as soon as any stage has another key."""
        stages = sorted([stage.name, stage.key] for stage in self.stages)
        return hashlib.sha256(json.dumps(stages).encode()).hexdigest()

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of all stages of the recipe, so that whole runs can be compared by what they differ in."""
        given = {stage.name: stage.ingredients.get("params") for stage in self.stages}
        return {name: value for name, value in given.items() if value and not name.startswith(SOURCES)}


class Session:
    """A connection to MLflow, and one parent run in it.

    Attributes:
        parent: its id.
        is_new: whether it was made just now.
        sent: how much MLflow did not have yet: ``runs``, ``parameters``, ``points`` (of curves), ``numbers`` (final
            ones) and ``files``.
    """

    def __init__(self, run: TrackedRun, uri: str, tags: Mapping[str, str], *, started: int | None = None) -> None:
        """Find the parent run, or make it with ``tags``; ``started`` in milliseconds since the epoch (now)."""
        self._client = connect(uri)
        self.sent: Counter[str] = Counter()
        self._experiment = self._find_experiment(run.experiment, uri)
        found = self.find(f"tags.plan_key = '{run.plan_key}'", limit=1)
        self.is_new = not found
        parent = found[0] if found else self.new_run(run.name, {"plan_key": run.plan_key, **tags}, started)
        self.log_parameters(parent, run.parameters)
        self.parent: str = parent.info.run_id

    def find(self, condition: str, *, limit: int = 1000) -> list[Run]:
        """The runs of the experiment that satisfy the condition, the newest first."""
        return list(self._client.search_runs([self._experiment], condition, max_results=limit))

    def get(self, run: str) -> Run:
        """A run as it is now."""
        return self._client.get_run(run)

    def new_run(self, name: str, tags: Mapping[str, str], started: int | None = None) -> Run:
        """Make a run."""
        self.sent["runs"] += 1
        return self._client.create_run(self._experiment, start_time=started, run_name=name, tags=dict(tags))

    def new_child(self, stage: TrackedStage, tags: Mapping[str, str], started: int | None = None) -> Run:
        """Make the nested run of a stage, with its parameters."""
        nested = {"mlflow.parentRunId": self.parent, "stage": stage.name, "stage_key": stage.key}
        run = self.new_run(stage.name, {**nested, **tags}, started)
        self.log_parameters(run, stage.ingredients.get("params", {}))
        return run

    def running(self, run: str) -> None:
        """It is at work."""
        self._client.update_run(run, status="RUNNING")

    def end(self, run: str, status: str, ended: int | None = None) -> None:
        """It has ended, at ``ended`` milliseconds since the epoch (now)."""
        self._client.set_terminated(run, status, ended)

    def tag(self, run: str, name: str, value: str) -> None:
        """Set a tag, whatever it was."""
        self._client.set_tag(run, name, value)

    def steps(self, run: Run) -> dict[str, set[int]]:
        """Metric -> the steps that MLflow has of it."""
        return {
            name: {point.step for point in self._client.get_metric_history(run.info.run_id, name)}
            for name in run.data.metrics
        }

    def log_points(self, run: str, points: Sequence[Metric]) -> None:
        """Append to curves."""
        self.sent["points"] += len(points)
        self._log_metrics(run, points)

    def log_parameters(self, run: Run, parameters: Mapping[str, Any]) -> None:
        """Record those that the run does not have: MLflow never changes one."""
        from mlflow.entities import Param

        shown = masked(parameters, environment_secrets(), VOCABULARY_NAMES)
        given = {metric_name(name): str(value)[:_VALUE_LENGTH] for name, value in _flatten(shown)}
        new = [Param(name, value) for name, value in given.items() if name not in run.data.params]
        self.sent["parameters"] += len(new)
        for start in range(0, len(new), _PARAMS_PER_BATCH):
            self._client.log_batch(run.info.run_id, params=new[start : start + _PARAMS_PER_BATCH])

    def record_result(self, stage: TrackedStage, entry: Entry, *, child: str | None) -> Done:
        """Final numbers on the parent, prefixed by the stage, and on the nested run if it made them; report files.

        Raises:
            RuntimeError: the result is gone.
        """
        done = entry.done()
        if done is None:
            raise RuntimeError(f"{entry.path} was removed while it was being tracked")
        parent, mark = self.get(self.parent), f"stage.{stage.name}"
        self._log_numbers(parent, {f"{stage.name}.{name}": value for name, value in done.metrics.items()}, done)
        if child is not None:
            self._log_numbers(self.get(child), done.metrics, done)
            self.tag(child, "result_id", done.result_id)
        if child is not None or mark not in parent.data.tags:
            self.tag(self.parent, mark, "cached" if child is None else "made")
        if issubclass(load_stage(stage.uses).output, ReportArtifact):
            self._send_report(stage.name, entry)
        return done

    def _send_report(self, stage: str, entry: Entry) -> None:
        """Again even if it is there: a stage that was made anew has another one."""
        there = {file.path for file in self._client.list_artifacts(self.parent, stage)}
        for file in sorted(entry.out.iterdir()):
            if file.name in ReportArtifact.required or file.suffix in (".html", ".png"):
                self.sent["files"] += f"{stage}/{file.name}" not in there
                self._client.log_artifact(self.parent, str(file), artifact_path=stage)

    def _log_numbers(self, run: Run, values: Mapping[str, float], done: Done) -> None:
        """Final numbers, of the moment of the result; those that the run has already are left alone."""
        from mlflow.entities import Metric

        moment = int(done.finished * 1000)
        given = [Metric(metric_name(name), float(value), moment, 0) for name, value in values.items()]
        new = [number for number in given if not self._has(run, number)]
        self.sent["numbers"] += len(new)
        self._log_metrics(run.info.run_id, new)

    def _has(self, run: Run, number: Metric) -> bool:
        """Whether it is the run's newest of that name, or was and stands before a curve of the same name."""
        newest = run.data.metrics.get(number.key)
        if newest is None or newest == number.value:
            return newest is not None
        history = self._client.get_metric_history(run.info.run_id, number.key)
        return any((point.step, point.timestamp) == (0, number.timestamp) for point in history)

    def _log_metrics(self, run: str, points: Sequence[Metric]) -> None:
        for start in range(0, len(points), _METRICS_PER_BATCH):
            self._client.log_batch(run, metrics=points[start : start + _METRICS_PER_BATCH])

    def _find_experiment(self, name: str, uri: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        directory = artifact_directory(uri, name)
        return self._client.create_experiment(name, artifact_location=None if directory is None else str(directory))


def curve_points(records: Sequence[Mapping[str, Any]], last: Mapping[str, int]) -> list[Metric]:
    """The lines of a ``metrics.jsonl`` as MLflow's points.

    Args:
        records: each with ``step``, ``time`` in seconds since the epoch, and numbers.
        last: metric -> the step up to which it is there: a resumed stage repeats the steps after its checkpoint.
    """
    from mlflow.entities import Metric

    return [
        Metric(metric_name(name), value, int(record["time"] * 1000), record["step"])
        for record in records
        for name, value in record.items()
        if name not in ("step", "time") and record["step"] > last.get(metric_name(name), -1)
    ]


def connect(uri: str) -> Any:
    """An ``MlflowClient``; makes the directory of a database in a file."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    database = database_file(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri)


@functools.cache
def machine_tags() -> dict[str, str]:
    """Where this process runs, and from which source tree."""
    commit, dirty = provenance.git_state()
    job = os.environ.get("SLURM_JOB_ID")
    tags = {"host": socket.gethostname(), "git_commit": str(commit), "git_dirty": str(dirty)}
    return tags if job is None else tags | {"slurm_job_id": job}


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested objects and lists with their dotted path; an empty list or object is a leaf too."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or (not value and path):
        yield path, value
        return
    for name, child in value.items():
        yield from _flatten(child, f"{path}.{name}" if path else str(name))


def metric_name(name: str) -> str:
    """``name`` with the characters that MLflow refuses replaced."""
    return re.sub(r"[^\w.\-/ ]", "_", name)[:250]
