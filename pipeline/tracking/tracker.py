"""Recording a run in MLflow while it is at work, and never in its way.

One parent run per (recipe name, set of stage keys), one nested run per executed stage. Everything happens in a
background thread in the order it was asked for: importing MLflow and a slow server cost the run no time, and a
failure of any kind is reported once and ends the tracking, not the run; ``pipeline track sync`` sends the rest.
"""

from __future__ import annotations

import functools
import json
import queue
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import EXIT_INTERRUPTED, EXIT_KILLED, PipelineError
from pipeline.plan import Plan, PlannedStage
from pipeline.programs import program
from pipeline.store import Attempt, Entry
from pipeline.tracking.session import STATUS, Session, TrackedRun, curve_points, machine_tags
from pipeline.urls import without_credentials
from pipeline.views.tail import Tail
from stages.masking import environment_secrets, mask_text

_FLUSH_SECONDS = 3.0
_CLOSE_SECONDS = 60.0


class Tracker:
    """Sends what the runner tells it to MLflow. A context manager: leaving it waits for what is still queued."""

    def __init__(self, plan: Plan, *, uri: str, warn: Callable[[str], None]) -> None:
        self.uri = uri
        self.run_id: str | None = None
        self._plan = plan
        self._warn = warn
        self._queue: queue.Queue[Callable[[LiveSession], None] | None] = queue.Queue()
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
        self._submit(lambda session: session.close(STATUS[state]))
        self._queue.put(None)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            server = without_credentials(self.uri)
            self._warn(f"MLflow at {server} has not answered for {_CLOSE_SECONDS:.0f} s; the rest is not tracked")

    def stage_cached(self, stage: PlannedStage, entry: Entry) -> None:
        """A stage was up to date: its final numbers belong to the parent run."""
        self._submit(lambda session: session.record_result(stage, entry, child=None))

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
        self._submit(lambda session: session.close_child(stage, STATUS[state]))
        if state == "finished":
            self._submit(lambda session: session.record_made(stage, entry))

    def _forward_metrics(self) -> None:
        with self._forwarding:
            for stage, tail in list(self._metrics.values()):
                if lines := tail.lines():
                    self._submit(functools.partial(_log_lines, stage=stage, lines=lines))

    def _submit(self, operation: Callable[[LiveSession], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()
        self._queue.put(operation)

    def _work(self) -> None:
        try:
            session = LiveSession(TrackedRun.of(self._plan), self.uri)
            self.run_id = session.parent
            while operation := self._queue.get():
                operation(session)
        except Exception as error:
            # Whatever a tracking server does must not cost a training run; the user is told once.
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            message = (
                f"MLflow tracking at {without_credentials(self.uri)} stopped, the run goes on without it: {cause}\n"
                f"Once it works again: {self._sync_command()}"
            )
            self._warn(mask_text(message, environment_secrets()))
            while self._queue.get():
                continue

    def _sync_command(self) -> str:
        elsewhere = [] if self._plan.runs == Path("runs") else ["--runs", str(self._plan.runs)]
        return shlex.join([program("pipeline"), "track", "sync", self._plan.recipe.name, *elsewhere])


def _log_lines(session: LiveSession, stage: PlannedStage, lines: list[str]) -> None:
    session.log_curves(stage, [json.loads(line) for line in lines])


class LiveSession(Session):
    """The nested runs of the stages that are at work; lives in the tracker's thread."""

    def __init__(self, run: TrackedRun, uri: str) -> None:
        super().__init__(run, uri, machine_tags())
        self.running(self.parent)
        self._children: dict[str, str] = {}
        self._last_steps: dict[str, dict[str, int]] = {}

    def open_child(self, stage: PlannedStage, attempt: int) -> None:
        """The nested run of a stage: the one that an interrupted attempt left, or a new one with its parameters."""
        found = self.find(
            f"tags.mlflow.parentRunId = '{self.parent}' and tags.stage = '{stage.name}' "
            f"and tags.stage_key = '{stage.key}'",
            limit=1,
        )
        run = found[0] if found and "result_id" not in found[0].data.tags else self.new_child(stage, machine_tags())
        child = self._children[stage.name] = run.info.run_id
        self._last_steps[stage.name] = {name: max(steps) for name, steps in self.steps(run).items()}
        self.running(child)
        self.tag(child, "attempt", str(attempt))

    def log_curves(self, stage: PlannedStage, records: list[Mapping[str, Any]]) -> None:
        """Append to the stage's curves what is not there yet."""
        self.log_points(self._children[stage.name], curve_points(records, self._last_steps[stage.name]))

    def close_child(self, stage: PlannedStage, status: str) -> None:
        """End the stage's nested run."""
        self.end(self._children[stage.name], status)

    def record_made(self, stage: PlannedStage, entry: Entry) -> None:
        """The result of a stage that was at work."""
        self.record_result(stage, entry, child=self._children[stage.name])

    def close(self, status: str) -> None:
        """End the parent run."""
        self.end(self.parent, status)
