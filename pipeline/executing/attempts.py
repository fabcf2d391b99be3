"""Making one result: launch an attempt, watch it, publish what it made, and try again where that is asked for.

Runner rules R7 to R9 and R17. An attempt that failed is followed by another only if the stage's resources ask for
``retries`` and the failure may pass by itself (``retries``); the next one goes on from what it saved.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any

from pipeline import durable, launch, publish
from pipeline.errors import Interrupted, Killed, StageFailed
from pipeline.executing import orphans, outcome, retries
from pipeline.executing.execution import GO_ON, Execution
from pipeline.executing.locks import FileLock
from pipeline.executing.outcome import Outcome
from pipeline.executing.supervise import Watch
from pipeline.launchers.worker import JOB_FILE
from pipeline.plan import PlannedStage
from pipeline.store import Attempt, Entry
from pipeline.views.display import duration
from stages import STAGES, load_stage
from stages.artifacts import ArtifactError
from stages.worker import SCHEMA_VERSION


@dataclass(frozen=True)
class Making:
    """One stage of an execution that is not up to date.

    Attributes:
        run: the execution.
        stage: what to make.
        entry: its place in the store.
        lock: of the entry, held by the caller.
    """

    run: Execution
    stage: PlannedStage
    entry: Entry
    lock: FileLock

    def make(self) -> None:
        """Attempt it until it is published or fails for good.

        Raises:
            StageFailed, Interrupted, Killed: it did not end with a result.
            Locked: ranks of an earlier attempt live on where they cannot be ended from here.
        """
        name, resources = self.stage.name, self.stage.resources
        orphans.end(self.entry, resources.grace_seconds, self.run.raise_if_stopped, self.run.display.line)
        if self.stage.restarted:
            publish.discard_work(self.entry)
        self.run.begun.add(self.stage.key)
        failed: list[tuple[Attempt, Outcome]] = []
        while True:
            attempt, ending, killed = self._attempt(len(failed))
            if ending.state == "finished":
                self.run.made.add(self.stage.key)
                return
            if ending.state == "interrupted":
                kind = Killed if killed and self.run.stop.count > 1 else Interrupted
                raise kind(outcome.interruption_report(name, self.entry, GO_ON, killed=killed))
            failed.append((attempt, ending))
            if len(failed) > resources.retries or self.run.stop.count or not retries.may_pass(ending, resources):
                raise StageFailed(outcome.failure_report(name, self.entry, failed, GO_ON))
            self._wait(attempt, ending, len(failed))

    def _wait(self, attempt: Attempt, ending: Outcome, number: int) -> None:
        """Wait before retry ``number``, and say so.

        Raises:
            Interrupted: the run was asked to stop.
        """
        seconds = retries.pause(number)
        name, most = self.stage.name, self.stage.resources.retries
        self.run.display.line(
            f"{name}: attempt {attempt.number} failed with exit code {ending.code}: {ending.message}; "
            f"retry {number} of {most} in {duration(seconds)}"
        )
        self.run.event("retrying", stage=name, attempt=attempt.number, exit_code=ending.code, retry=number, of=most)
        if not self.run.stop.wait(seconds):
            raise Interrupted(outcome.interruption_report(name, self.entry, GO_ON, killed=False))

    def _attempt(self, retry: int) -> tuple[Attempt, Outcome, bool]:
        """One attempt, published if it succeeded: it, how it ended, and whether it had to be killed."""
        run, stage, entry = self.run, self.stage, self.entry
        attempt = publish.begin_attempt(entry, stage.ingredients, run.upstream(stage))
        resume_point = entry.resume_point()
        going_on = f", going on from {resume_point}" if resume_point else ""
        run.display.line(f"{stage.name}: attempt {attempt.number}{going_on}")
        started, began = time.time(), time.monotonic()  # the clock may be set meanwhile, and a duration must not be
        with self._launch(attempt) as watch:
            status = {"pid": watch.process.pid, "host": socket.gethostname(), "started": started, "retry": retry}
            durable.write_json(attempt.path / "status.json", {"state": "running", **status})
            run.event("started", stage=stage.name, attempt=attempt.number)
            if run.tracker:
                run.tracker.stage_started(stage, attempt)
            exit_code = watch.wait()
        seconds = time.monotonic() - began
        problem = None
        if exit_code == 0:
            run.display.line(f"{stage.name}: publishing")
            problem = self._publish(attempt, seconds)
        ending = outcome.interpret(attempt, exit_code, problem, asked=run.stop.count > 0)
        durable.write_json(
            attempt.path / "status.json",
            {"state": ending.state, **status, "exit_code": exit_code, "ended": started + seconds},
        )
        run.event(ending.state, stage=stage.name, attempt=attempt.number, seconds=seconds)
        if run.tracker:
            run.tracker.stage_ended(stage, ending.state, entry)
        if ending.state == "finished":
            run.display.line(f"{stage.name}: done in {duration(seconds)}")
        return attempt, ending, watch.killed

    def _launch(self, attempt: Attempt) -> Watch:
        run, stage = self.run, self.stage
        job = attempt.path.resolve() / JOB_FILE
        resources = launch.settled(stage.resources.shared_by(run.jobs))
        durable.write_json(job, self._job(attempt) | {"resources": resources.model_dump(mode="json")})
        job.chmod(0o600)  # DeepSpeed's configuration may hold keys, which nothing else that is kept does
        locks = (*run.lock.descriptors, *self.lock.descriptors)
        built = launch.build(job, resources)
        for line in built.elsewhere:
            run.display.line(f"{stage.name}: it waits for another node; run there: {line.strip()}")
        return Watch(
            name=stage.name,
            process=launch.start(built, attempt.path, keep_open=locks),
            attempt=attempt.path,
            grace_seconds=stage.resources.grace_seconds,
            stop=run.stop,
            show=run.display,
            poll=run.tracker.poll if run.tracker else _nothing,
        )

    def _job(self, attempt: Attempt) -> dict[str, Any]:
        run, stage = self.run, self.stage

        def directory(name: str) -> str:
            # The result whose identity is recorded, even if another run replaces it meanwhile.
            upstream, done = run.plan.stage(name), run.results[name]
            return str(run.store.entry(upstream.uses, upstream.key).output_directory(done.attempt).resolve())

        return {
            "schema_version": SCHEMA_VERSION,
            "stage": stage.name,
            "uses": stage.uses,
            "module": STAGES[stage.uses],
            "config": stage.config.model_dump(mode="json"),
            "inputs": {name: {made: directory(made) for made in names} for name, names in stage.inputs.items()},
            "work": str(self.entry.work.resolve()),
            "out": str(self.entry.partial_directory(attempt.number).resolve()),
            "attempt": str(attempt.path.resolve()),
            "cache": str((run.store.root.parent / "cache").resolve()),
        }

    def _publish(self, attempt: Attempt, seconds: float) -> str | None:
        """Publish the attempt; returns what is wrong with its output, or None."""
        try:
            publish.publish(
                self.entry,
                attempt.number,
                load_stage(self.stage.uses).output,
                ingredients=self.stage.ingredients,
                upstream=self.run.upstream(self.stage),
                run=self.run.plan.recipe.name,
                seconds=seconds,
            )
        except (ArtifactError, durable.DiskFull) as error:
            return str(error)
        return None


def _nothing() -> None:
    """What there is to do at every poll when nothing is tracked."""
