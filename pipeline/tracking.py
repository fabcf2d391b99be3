"""Recording a run in MLflow: the only module that imports it, and never in the way of the run.

One parent run per (recipe name, set of stage keys), one nested run per executed stage. Everything happens in a
background thread in the order it was asked for: importing MLflow and a slow server cost the run no time, and a
failure of any kind is reported once and ends the tracking, not the run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline import provenance
from pipeline.errors import EXIT_INTERRUPTED, EXIT_KILLED, PipelineError
from pipeline.plan import Plan, PlannedStage
from pipeline.request import SOURCES
from pipeline.store import Attempt, Entry
from pipeline.tail import Tail
from pipeline.tracking_place import database_file
from pipeline.urls import without_credentials
from stages import load_stage
from stages.artifacts import ReportArtifact
from stages.masking import VOCABULARY_NAMES, environment_secrets, mask_text, masked

if TYPE_CHECKING:
    from mlflow.entities import Run

_FLUSH_SECONDS = 3.0
_CLOSE_SECONDS = 60.0
# MLflow's own limits on one log_batch call and on the length of one value
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_VALUE_LENGTH = 6000

_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class Tracker:
    """Sends what the runner tells it to MLflow. A context manager: leaving it waits for what is still queued."""

    def __init__(self, plan: Plan, *, uri: str, warn: Callable[[str], None]) -> None:
        self.uri = uri
        self.run_id: str | None = None
        self._plan = plan
        self._warn = warn
        self._queue: queue.Queue[Callable[[_Session], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._metrics: dict[str, tuple[PlannedStage, Tail]] = {}
        self._forwarding = threading.Lock()  # stages may run side by side, each watched by a thread
        self._polled = 0.0

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        stopped = isinstance(error, PipelineError) and error.exit_code in (EXIT_INTERRUPTED, EXIT_KILLED)
        state = "finished" if error is None else "interrupted" if stopped else "failed"
        self._submit(lambda session: session.close(_STATUS[state]))
        self._queue.put(None)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            server = without_credentials(self.uri)
            self._warn(f"MLflow at {server} has not answered for {_CLOSE_SECONDS:.0f} s; the rest is not tracked")

    def stage_cached(self, stage: PlannedStage, entry: Entry) -> None:
        """A stage was up to date: its final numbers belong to the parent run."""
        self._submit(lambda session: session.record_result(stage, entry, cached=True))

    def stage_started(self, stage: PlannedStage, attempt: Attempt) -> None:
        """An attempt was launched; its ``metrics.jsonl`` is followed until ``stage_ended``."""
        self._metrics[stage.name] = stage, Tail(attempt.path / "metrics.jsonl")
        self._submit(lambda session: session.open_child(stage, attempt.number))

    def poll(self) -> None:
        """Forward new training curves every few seconds; returns at once."""
        if time.monotonic() - self._polled >= _FLUSH_SECONDS:
            self._polled = time.monotonic()
            self._forward_metrics()

    def stage_ended(self, stage: PlannedStage, state: str, entry: Entry) -> None:
        """The attempt ended as ``finished``, ``interrupted`` or ``failed``."""
        self._forward_metrics()
        del self._metrics[stage.name]
        self._submit(lambda session: session.close_child(stage, _STATUS[state]))
        if state == "finished":
            self._submit(lambda session: session.record_result(stage, entry, cached=False))

    def _forward_metrics(self) -> None:
        with self._forwarding:
            for stage, tail in list(self._metrics.values()):
                if lines := tail.lines():
                    self._submit(functools.partial(_log_lines, stage=stage, lines=lines))

    def _submit(self, operation: Callable[[_Session], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()
        self._queue.put(operation)

    def _work(self) -> None:
        try:
            session = _Session(self._plan, self.uri)
            self.run_id = session.parent
            while operation := self._queue.get():
                operation(session)
        except Exception as error:
            # Whatever a tracking server does must not cost a training run; the user is told once.
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            message = f"MLflow tracking at {without_credentials(self.uri)} stopped, the run goes on without it: {cause}"
            self._warn(mask_text(message, environment_secrets()))
            while self._queue.get():
                continue


def _log_lines(session: _Session, stage: PlannedStage, lines: list[str]) -> None:
    session.log_curves(stage, [json.loads(line) for line in lines])


class _Session:
    """The connection to MLflow; lives in the tracker's thread."""

    def __init__(self, plan: Plan, uri: str) -> None:
        self._client = _connect(uri)
        self._experiment = self._find_experiment(plan.recipe.experiment, uri)
        stages = sorted([stage.name, stage.key] for stage in plan.stages)
        plan_key = hashlib.sha256(json.dumps(stages).encode()).hexdigest()
        found = self._find_run(f"tags.plan_key = '{plan_key}'")
        if found is None:
            tags = {"plan_key": plan_key, **_machine_tags()}
            found = self._client.create_run(self._experiment, run_name=plan.recipe.name, tags=tags)
            # Of all stages, so that whole runs can be compared by what they differ in. The key of the plan, by which a
            # run is found again, changes with any of them.
            given = {stage.name: stage.ingredients.get("params") for stage in plan.stages}
            own = {name: value for name, value in given.items() if value and not name.startswith(SOURCES)}
            self._log_parameters(found.info.run_id, own)
        self.parent: str = found.info.run_id
        self._client.update_run(self.parent, status="RUNNING")
        self._children: dict[str, str] = {}
        self._last_steps: dict[str, dict[str, int]] = {}

    def open_child(self, stage: PlannedStage, attempt: int) -> None:
        """The nested run of a stage: the one that an interrupted attempt left, or a new one with its parameters."""
        run = self._find_run(
            f"tags.mlflow.parentRunId = '{self.parent}' and tags.stage = '{stage.name}' "
            f"and tags.stage_key = '{stage.key}'"
        )
        if run is None or "result_id" in run.data.tags:
            tags = {
                "mlflow.parentRunId": self.parent,
                "stage": stage.name,
                "stage_key": stage.key,
                **_machine_tags(),
            }
            run = self._client.create_run(self._experiment, run_name=stage.name, tags=tags)
            self._log_parameters(run.info.run_id, stage.ingredients.get("params", {}))
        child = self._children[stage.name] = run.info.run_id
        self._last_steps[stage.name] = {
            name: max(point.step for point in self._client.get_metric_history(child, name)) for name in run.data.metrics
        }
        self._client.update_run(child, status="RUNNING")
        self._client.set_tag(child, "attempt", str(attempt))

    def log_curves(self, stage: PlannedStage, records: list[Mapping[str, Any]]) -> None:
        """Append to the stage's curves what is not there yet: a resumed stage repeats steps after its checkpoint."""
        from mlflow.entities import Metric

        last = self._last_steps[stage.name]
        points = [
            Metric(_name(name), value, int(record["time"] * 1000), record["step"])
            for record in records
            for name, value in record.items()
            if name not in ("step", "time") and record["step"] > last.get(_name(name), -1)
        ]
        for start in range(0, len(points), _METRICS_PER_BATCH):
            batch = points[start : start + _METRICS_PER_BATCH]
            self._client.log_batch(self._children[stage.name], metrics=batch)

    def close_child(self, stage: PlannedStage, status: str) -> None:
        """End the stage's nested run."""
        self._client.set_terminated(self._children[stage.name], status)

    def record_result(self, stage: PlannedStage, entry: Entry, *, cached: bool) -> None:
        """Final numbers on the parent, prefixed by the stage, and on the nested run if there is one; report files."""
        done = entry.done()
        if done is None:
            raise RuntimeError(f"{entry.path} was removed while it was being tracked")
        self._log_values(self.parent, {f"{stage.name}.{name}": value for name, value in done.metrics.items()})
        self._client.set_tag(self.parent, f"stage.{stage.name}", "cached" if cached else "made")
        if not cached:
            child = self._children[stage.name]
            self._log_values(child, done.metrics)
            self._client.set_tag(child, "result_id", done.result_id)
        if issubclass(load_stage(stage.uses).output, ReportArtifact):
            for file in sorted(entry.out.iterdir()):
                if file.name in ReportArtifact.required or file.suffix in (".html", ".png"):
                    self._client.log_artifact(self.parent, str(file), artifact_path=stage.name)

    def close(self, status: str) -> None:
        """End the parent run."""
        self._client.set_terminated(self.parent, status)

    def _find_experiment(self, name: str, uri: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        database = database_file(uri)
        location = None if database is None else str(database.parent / "artifacts" / name)
        return self._client.create_experiment(name, artifact_location=location)

    def _find_run(self, condition: str) -> Run | None:
        """The newest run that satisfies the condition."""
        found = self._client.search_runs([self._experiment], condition, max_results=1)
        return found[0] if found else None

    def _log_values(self, run: str, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(_name(name), float(value), now, 0) for name, value in values.items()]
        for start in range(0, len(points), _METRICS_PER_BATCH):
            self._client.log_batch(run, metrics=points[start : start + _METRICS_PER_BATCH])

    def _log_parameters(self, run: str, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        shown = masked(parameters, environment_secrets(), VOCABULARY_NAMES)
        flat = [Param(_name(name), str(value)[:_VALUE_LENGTH]) for name, value in _flatten(shown)]
        for start in range(0, len(flat), _PARAMS_PER_BATCH):
            self._client.log_batch(run, params=flat[start : start + _PARAMS_PER_BATCH])


def _connect(uri: str) -> Any:
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
def _machine_tags() -> dict[str, str]:
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


def _name(name: str) -> str:
    """``name`` with the characters that MLflow refuses replaced."""
    return re.sub(r"[^\w.\-/ ]", "_", name)[:250]
