"""Executing a plan: locks, attempts, outcomes (runner rules R7-R10, R13, R14, R16, R17).

For every stage that is not up to date: take its lock, look again, launch ``stages.worker``, watch it, and publish
what it made. The runner is the only one that marks a result as done, and the only one that talks to the tracker.
"""

from __future__ import annotations

import json
import shlex
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline import durable, launch, launch_checks, orphans, outcome, overview, publish
from pipeline.display import Display, Lines, duration
from pipeline.errors import Interrupted, Killed, Locked, StageFailed
from pipeline.launchers.worker import JOB_FILE
from pipeline.locks import FileLock, describe_holder
from pipeline.plan import Action, Plan, PlannedStage
from pipeline.schedule import Schedule
from pipeline.store import Attempt, Done, Entry, Store, StoreError
from pipeline.supervise import StopSignals, Watch
from stages import STAGES, load_stage
from stages.artifacts import ArtifactError
from stages.worker import SCHEMA_VERSION

if TYPE_CHECKING:
    from pipeline.tracking import Tracker


@dataclass(frozen=True)
class StageResult:
    """What became of one planned stage.

    Attributes:
        name, uses: its name in the recipe and its kind.
        cached: True if the result was already there.
        seconds: how long the attempt that made the result took, now or then.
        out: the published directory.
    """

    name: str
    uses: str
    cached: bool
    seconds: float
    out: Path


@dataclass(frozen=True)
class RunResult:
    """What a run did, in plan order. ``mlflow_run_id`` is None when nothing was tracked."""

    stages: tuple[StageResult, ...]
    mlflow_run_id: str | None


def execute(
    plan: Plan,
    *,
    tracker: Tracker | None = None,
    out: Callable[[str], None] = print,
    display: Display | None = None,
    command: str | None = None,
    jobs: int = 1,
    keep_going: bool = False,
) -> RunResult:
    """Bring every selected stage of ``plan`` up to date.

    Args:
        plan: what to do.
        tracker: records the run in MLflow; None tracks nothing.
        out: prints one line for a person.
        display: shows what is going on in another way than line by line; then ``out`` is not used.
        command: the command line that continues this run, for messages; None for the plain ``pipeline run``.
        jobs: how many stages may run at the same time; the cores are divided among them.
        keep_going: when a stage fails, go on with those that do not need it.

    Raises:
        Locked: another process is at work on this run.
        StageFailed: a stage failed; the message is the whole report, of all that failed.
        Interrupted: the run was asked to stop and can be continued.
        Killed: a second Ctrl-C ended the stage.
        StoreError: the store is damaged, or does not hold what the plan relies on.
        DiskFull: there is no room for the run's own files.
        RecipeError: this machine cannot start a stage as its resources ask.
    """
    launch_checks.check_machine(plan)
    command = command or shlex.join(["pipeline", "run", str(plan.recipe.path), "--runs", str(plan.runs)])
    display = display or Lines(out)
    out = display.line
    with _run_lock(plan) as lock, StopSignals() as stop:
        if lock.is_lease:
            out(f"note: the file system of {plan.runs} has no flock: lease files stand for locks (`pipeline unlock`)")
        _record_recipe(plan)
        tracker = tracker if plan.pending else None
        run = _Run(plan, Store(plan.runs / "store"), lock, stop, tracker, display, out, command, jobs)
        with run.tracker or nullcontext(), durable.disk_full_explained("the run", plan.runs):
            results = Schedule(plan.stages, run.bring_up_to_date, jobs, keep_going).run()
        return RunResult(tuple(results), run.tracker.run_id if run.tracker else None)


def _run_lock(plan: Plan) -> FileLock:
    path = plan.run_directory / "run.lock"
    try:
        return FileLock(path).acquire()
    except Locked:
        raise Locked(
            f"run {plan.recipe.name!r} is already being executed by {describe_holder(path)}.\n"
            "If that process is gone, a stage that it started is still saving; try again when it has ended."
        ) from None


def _record_recipe(plan: Plan) -> None:
    durable.write_text(plan.run_directory / "recipe.yaml", plan.recipe.text)
    resolved = yaml.safe_dump(dict(plan.recipe.resolved), sort_keys=False, allow_unicode=True)
    durable.write_text(plan.run_directory / "recipe.resolved.yaml", resolved)
    overview.keep(plan)


@dataclass
class _Run:
    """One execution: what every step of it needs."""

    plan: Plan
    store: Store
    lock: FileLock
    stop: StopSignals
    tracker: Tracker | None
    display: Display
    out: Callable[[str], None]
    command: str
    jobs: int = 1
    results: dict[str, Done] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)

    def bring_up_to_date(self, stage: PlannedStage) -> StageResult:
        """Make sure that the stage's result is in the store, and link to it from the run's directory."""
        self._raise_if_stopped()
        entry = self.store.entry(stage.uses, stage.key)
        cached = stage.action is Action.SKIP
        if not cached:
            with FileLock(entry.lock_path).wait(self._waiting_for(entry, stage.name)) as stage_lock:
                cached = self._is_up_to_date(stage, entry)
                if not cached:
                    self._make(stage, entry, stage_lock)
        done = entry.done()
        if done is None:
            raise StoreError(
                f"the result of stage {stage.name!r} is gone: {entry.problem() or f'{entry.done_path} is missing'}.\n"
                f"Make it again with: {self.command}"
            )
        publish.link_output(entry, done.attempt)
        durable.replace_link(self.plan.run_directory / "stages" / stage.name, entry.path)
        self.results[stage.name] = done
        if cached:
            self.out(f"{stage.name}: cached")
            self._event("cached", stage=stage.name, result_id=done.result_id)
            if self.tracker:
                self.tracker.stage_cached(stage, entry)
        return StageResult(stage.name, stage.uses, cached, done.seconds, entry.out)

    def _is_up_to_date(self, stage: PlannedStage, entry: Entry) -> bool:
        """Look again, now under the lock: an earlier stage or another run may have made the result meanwhile."""
        done = entry.done()
        if done is None:
            return False
        forced = stage.forced and stage.key not in self.made
        return not forced and set(done.upstream.values()) == set(self._upstream(stage).values())

    def _upstream(self, stage: PlannedStage) -> dict[str, str]:
        return {name: self.results[name].result_id for name in stage.upstream}

    def _make(self, stage: PlannedStage, entry: Entry, stage_lock: FileLock) -> None:
        """One attempt: launch, watch, publish.

        Raises:
            StageFailed, Interrupted, Killed: it did not end with a result.
            Locked: ranks of an earlier attempt live on where they cannot be ended from here.
        """
        orphans.end(entry, stage.resources.grace_seconds, self._raise_if_stopped, self.out)
        if stage.restarted:
            publish.discard_work(entry)
        attempt = publish.begin_attempt(entry, stage.ingredients, self._upstream(stage))
        resume_point = entry.resume_point()
        going_on = f", going on from {resume_point}" if resume_point else ""
        self.out(f"{stage.name}: attempt {attempt.number}{going_on}")
        started = time.time()
        with self._launch(stage, entry, attempt, stage_lock) as watch:
            status = {"pid": watch.process.pid, "host": socket.gethostname(), "started": started}
            durable.write_json(attempt.path / "status.json", {"state": "running", **status})
            self._event("started", stage=stage.name, attempt=attempt.number)
            if self.tracker:
                self.tracker.stage_started(stage, attempt)
            exit_code = watch.wait()
        seconds = time.time() - started
        problem = None
        if exit_code == 0:
            self.out(f"{stage.name}: publishing")
            problem = self._publish(stage, entry, attempt, seconds)
        ending = outcome.interpret(attempt, exit_code, problem, asked=self.stop.count > 0)
        durable.write_json(
            attempt.path / "status.json",
            {"state": ending.state, **status, "exit_code": exit_code, "ended": time.time()},
        )
        self._event(ending.state, stage=stage.name, attempt=attempt.number, seconds=seconds)
        if self.tracker:
            self.tracker.stage_ended(stage, ending.state, entry)
        if ending.state == "failed":
            raise StageFailed(outcome.failure_report(stage.name, entry, attempt, ending, self.command))
        if ending.state == "interrupted":
            kind = Killed if watch.killed and self.stop.count > 1 else Interrupted
            raise kind(outcome.interruption_report(stage.name, entry, self.command, killed=watch.killed))
        self.made.add(stage.key)
        self.out(f"{stage.name}: done in {duration(seconds)}")

    def _launch(self, stage: PlannedStage, entry: Entry, attempt: Attempt, stage_lock: FileLock) -> Watch:
        job = attempt.path.resolve() / JOB_FILE
        resources = launch.settled(stage.resources.shared_by(self.jobs))
        durable.write_json(job, self._job(stage, entry, attempt) | {"resources": resources.model_dump(mode="json")})
        job.chmod(0o600)  # DeepSpeed's configuration may hold keys, which nothing else that is kept does
        locks = (*self.lock.descriptors, *stage_lock.descriptors)
        built = launch.build(job, resources)
        for line in built.elsewhere:
            self.out(f"{stage.name}: it waits for another node; run there: {line.strip()}")
        return Watch(
            name=stage.name,
            process=launch.start(built, attempt.path, keep_open=locks),
            attempt=attempt.path,
            grace_seconds=stage.resources.grace_seconds,
            stop=self.stop,
            show=self.display,
            poll=self.tracker.poll if self.tracker else _nothing,
        )

    def _job(self, stage: PlannedStage, entry: Entry, attempt: Attempt) -> dict[str, Any]:
        def directory(name: str) -> str:
            # The result whose identity is recorded, even if another run replaces it meanwhile.
            upstream, done = self.plan.stage(name), self.results[name]
            return str(self.store.entry(upstream.uses, upstream.key).output_directory(done.attempt).resolve())

        return {
            "schema_version": SCHEMA_VERSION,
            "stage": stage.name,
            "uses": stage.uses,
            "module": STAGES[stage.uses],
            "config": stage.config.model_dump(mode="json"),
            "inputs": {name: {made: directory(made) for made in names} for name, names in stage.inputs.items()},
            "work": str(entry.work.resolve()),
            "out": str(entry.partial_directory(attempt.number).resolve()),
            "attempt": str(attempt.path.resolve()),
            "cache": str((self.store.root.parent / "cache").resolve()),
        }

    def _publish(self, stage: PlannedStage, entry: Entry, attempt: Attempt, seconds: float) -> str | None:
        """Publish the attempt; returns what is wrong with its output, or None."""
        try:
            publish.publish(
                entry,
                attempt.number,
                load_stage(stage.uses).output,
                ingredients=stage.ingredients,
                upstream=self._upstream(stage),
                run=self.plan.recipe.name,
                seconds=seconds,
            )
        except (ArtifactError, durable.DiskFull) as error:
            return str(error)
        return None

    def _waiting_for(self, entry: Entry, name: str) -> Callable[[], None]:
        said = 0.0

        def waiting() -> None:
            nonlocal said
            self._raise_if_stopped()
            if time.monotonic() - said > 10:
                said = time.monotonic()
                self.out(f"{name}: waiting for {describe_holder(entry.lock_path)}, which is making the same result")

        return waiting

    def _raise_if_stopped(self) -> None:
        if self.stop.count:
            raise Interrupted(f"stopped between stages; nothing was lost. Go on with: {self.command}")

    def _event(self, event: str, **values: Any) -> None:
        record = {"time": time.time(), "event": event, **values}
        with (self.plan.run_directory / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _nothing() -> None:
    """What there is to do at every poll when nothing is tracked."""
