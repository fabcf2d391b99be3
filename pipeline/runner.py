"""Executing a plan: locks, attempts, outcomes (runner rules R7-R10, R13, R14, R16, R17).

For every stage that is not up to date: take its lock, look again, and have ``executing.attempts`` make it. The runner
is the only one that marks a result as done, and the only one that talks to the tracker.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import durable, publish, result_links
from pipeline.errors import Interrupted, Killed, Locked, StageFailed
from pipeline.executing.attempts import Making
from pipeline.executing.execution import GO_ON, Command, Execution
from pipeline.executing.locks import FileLock, describe_holder
from pipeline.executing.schedule import Schedule
from pipeline.executing.signals import StopSignals
from pipeline.plan import Action, Plan, PlannedStage
from pipeline.reading import launch_checks
from pipeline.reading.yaml_source import as_yaml
from pipeline.store import Entry, Store, StoreError
from pipeline.views import overview
from pipeline.views.display import Display, Lines

if TYPE_CHECKING:
    from pipeline.tracking.tracker import Tracker


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
    command: Command | None = None,
    jobs: int = 1,
    keep_going: bool = False,
) -> RunResult:
    """Bring every selected stage of ``plan`` up to date.

    Args:
        plan: what to do.
        tracker: records the run in MLflow; None tracks nothing.
        out: prints one line for a person.
        display: shows what is going on in another way than line by line; then ``out`` is not used.
        command: gives the command line that continues this run, for messages; None for the plain ``pipeline run``.
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
    display = display or Lines(out)
    with _run_lock(plan) as lock, StopSignals() as stop:
        if lock.is_lease:
            display.line(
                f"note: the file system of {plan.runs} has no flock: lease files stand for locks (`pipeline unlock`)"
            )
        _record_recipe(plan)
        tracker = tracker if plan.pending else None
        run = Execution(plan, Store(plan.runs / "store"), lock, stop, tracker, display, jobs)
        try:
            with tracker or nullcontext(), durable.disk_full_explained("the run", plan.runs):
                results = Schedule(plan.stages, _Upkeep(run).bring_up_to_date, jobs, keep_going).run()
        except (StageFailed, Interrupted, Killed, StoreError) as problem:
            # Only now is it certain what the next command has to ask for.
            going_on = (command or _plain_command(plan))(run.outstanding())
            raise type(problem)(str(problem).replace(GO_ON, going_on)) from None
        return RunResult(tuple(results), tracker.run_id if tracker else None)


def _plain_command(plan: Plan) -> Command:
    line = shlex.join(["pipeline", "run", str(plan.recipe.path), "--runs", str(plan.runs)])
    return lambda outstanding: line


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
    durable.write_text(plan.run_directory / "recipe.resolved.yaml", as_yaml(plan.recipe.resolved))
    result_links.set_aside(plan)
    overview.keep(plan)


@dataclass(frozen=True)
class _Upkeep:
    """Brings the stages of an execution up to date, each when it is its turn."""

    run: Execution

    def bring_up_to_date(self, stage: PlannedStage) -> StageResult:
        """Make sure that the stage's result is in the store, and link to it from the run's directory."""
        run = self.run
        run.raise_if_stopped()
        entry = run.store.entry(stage.uses, stage.key)
        cached = stage.action is Action.SKIP
        if not cached:
            with FileLock(entry.lock_path).wait(self._waiting_for(entry, stage.name)) as stage_lock:
                cached = self._is_up_to_date(stage, entry)
                if not cached:
                    Making(run, stage, entry, stage_lock).make()
        done = entry.done()
        if done is None:
            raise StoreError(
                f"the result of stage {stage.name!r} is gone: {entry.problem() or f'{entry.done_path} is missing'}.\n"
                f"Make it again with: {GO_ON}"
            )
        publish.link_output(entry, done.attempt)
        result_links.lead_to(run.plan.run_directory, stage.name, entry)
        run.results[stage.name] = done
        if cached:
            run.display.line(f"{stage.name}: cached")
            run.event("cached", stage=stage.name, result_id=done.result_id)
            if run.tracker:
                run.tracker.stage_cached(stage, entry)
        return StageResult(stage.name, stage.uses, cached, done.seconds, entry.out)

    def _is_up_to_date(self, stage: PlannedStage, entry: Entry) -> bool:
        """Look again, now under the lock: an earlier stage or another run may have made the result meanwhile."""
        done = entry.done()
        if done is None:
            return False
        forced = stage.forced and stage.key not in self.run.made
        return not forced and set(done.upstream.values()) == set(self.run.upstream(stage).values())

    def _waiting_for(self, entry: Entry, name: str) -> Callable[[], None]:
        said = 0.0

        def waiting() -> None:
            nonlocal said
            self.run.raise_if_stopped()
            if time.monotonic() - said > 10:
                said = time.monotonic()
                holder = describe_holder(entry.lock_path)
                self.run.display.line(f"{name}: waiting for {holder}, which is making the same result")

        return waiting
