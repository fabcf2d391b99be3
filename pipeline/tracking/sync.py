"""Sending MLflow what it lacks of a run, from what the run keeps: ``pipeline track sync``.

For runs that were tracked nowhere, or not to their end: without a connection, beside a server that failed, before a
database was lost, on a cluster whose run directory was copied here. What is sent follows the conventions of the live
tracker, and what is there already is found again and left alone, so that nothing is ever sent twice.

A run directory keeps its newest recipe alone. Stages of earlier options are sent with it as far as they are the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.errors import PipelineError
from pipeline.executing.locks import FileLock
from pipeline.keys import cache_key
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.runs import kept_recipe
from pipeline.store import Attempt, Entry, Store
from pipeline.tracking.kept_attempts import Ending, Life, Moment, RunEvents, curve_records, lives, slurm_job, started
from pipeline.tracking.session import STATUS, Session, TrackedRun, TrackedStage, curve_points
from pipeline.urls import without_credentials
from pipeline.views import overview
from stages.masking import environment_secrets, mask_text

if TYPE_CHECKING:
    from mlflow.entities import Run

SENT = ("runs", "parameters", "points", "numbers", "files")
"""What is counted: MLflow's runs, parameters, points of curves, final numbers, files of reports."""


@dataclass(frozen=True)
class Synced:
    """What became of one run.

    Attributes:
        run: its name.
        mlflow_run_id: of the parent run.
        sent: what MLflow did not have; every key of ``SENT``.
        notes: what could not be read, a line each.
    """

    run: str
    mlflow_run_id: str
    sent: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Stage:
    """A stage as its entry in the store keeps it (a ``TrackedStage``)."""

    name: str
    uses: str
    key: str
    ingredients: Mapping[str, Any]


def sync(name: str, runs: Path, uri: str) -> Synced:
    """Send what MLflow at ``uri`` lacks of the run called ``name``.

    Raises:
        RecipeError: there is no such run, or its stages cannot be known.
        Locked: some process executes it, and tracks it itself.
        PipelineError: MLflow cannot be reached or refuses.
    """
    directory = kept_recipe(name, runs).parent
    # Only one writes into the parent run at a time. Where nothing can be written, nothing can be run either.
    lock = FileLock(directory / "run.lock").acquire() if os.access(directory, os.W_OK) else nullcontext()
    with lock:
        run = _kept_run(name, runs)
        try:
            return _Sync(run, Store(runs / "store"), directory, uri).send()
        except PipelineError:
            raise
        except Exception as error:
            # MLflow, its database driver and its HTTP client each have errors of their own.
            cause = mask_text(str(error).splitlines()[0] if str(error) else "", environment_secrets())
            raise PipelineError(
                f"MLflow at {without_credentials(uri)} did not take run {name!r}: {type(error).__name__}: {cause}\n"
                "What it took is there; the same command sends the rest."
            ) from error


def _kept_run(name: str, runs: Path) -> TrackedRun:
    """The run as its directory and the store keep it, without the files that its recipe refers to.

    Only the keys of stages that were never begun have to be planned, which takes those files.
    """
    recipe = kept_recipe(name, runs)
    places = overview.kept_places(recipe.parent) or {}
    stages = [_kept_stage(stage, runs / "store" / place) for stage, place in places.items()]
    known = [stage for stage in stages if stage is not None]
    values = _values(recipe)
    if values and known and len(known) == len(stages):
        return TrackedRun(name, values.get("experiment", name), known)
    return TrackedRun.of(make_plan(load_recipe(recipe), runs))


def _values(recipe: Path) -> dict[str, Any] | None:
    """What a kept recipe says; None if it is damaged, which ``load_recipe`` explains."""
    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return values if isinstance(values, dict) else None


def _kept_stage(name: str, place: Path) -> _Stage | None:
    """None if it was never begun, or what was kept of it is damaged."""
    ingredients = Entry(place, "").ingredients()
    key = None if ingredients is None else cache_key(ingredients)
    return _Stage(name, place.parent.name, key, ingredients) if key and key.startswith(place.name) else None


class _Sync:
    """One run being sent."""

    def __init__(self, run: TrackedRun, store: Store, directory: Path, uri: str) -> None:
        self._run = run
        self._entries = {stage.name: store.entry(stage.uses, stage.key) for stage in run.stages}
        self._events = RunEvents.read(directory / "events.jsonl")
        self._notes: list[str] = []
        self._lives = {name: lives(name, entry, self._events, run.name) for name, entry in self._entries.items()}
        begun = sorted((life.attempts[0] for life in self._all_lives()), key=started)
        tags = _tags(begun[0], self._all_lives()) if begun else {}
        self._session = Session(run, uri, tags, started=_milliseconds(begun[0], "started") if begun else None)

    def _all_lives(self) -> list[Life]:
        return [life for own in self._lives.values() for life in own]

    def send(self) -> Synced:
        """All that MLflow lacks."""
        for stage in self._run.stages:
            self._send_stage(stage)
        parent = self._session.get(self._session.parent)
        if parent.info.status == "RUNNING" or sum(self._session.sent.values()):
            ended = [_milliseconds(life.last, "ended") for life in self._all_lives()]
            self._session.end(self._session.parent, STATUS[self._state()], max(filter(None, ended), default=None))
        sent = {what: self._session.sent[what] for what in SENT}
        return Synced(self._run.name, self._session.parent, sent, tuple(self._notes))

    def _state(self) -> Ending:
        """How the last attempt of each stage without a result ended; without any, what was asked for was made."""
        states = [own[-1].state for name, own in self._lives.items() if own and not self._entries[name].done()]
        return next((state for state in ("failed", "interrupted") if state in states), "finished")

    def _send_stage(self, stage: TrackedStage) -> None:
        entry = self._entries[stage.name]
        known = self._session.find(f"tags.stage = '{stage.name}' and tags.stage_key = '{stage.key}'")
        made_here = False
        for life in self._lives[stage.name]:
            run = _run_of(life, known)
            if run is None:
                moment = _milliseconds(life.attempts[0], "started")
                run = self._session.new_child(stage, _tags(life.attempts[0], [life]), moment)
            elif run.data.tags.get("mlflow.parentRunId") != self._session.parent:
                continue  # of earlier options of this run: there it was made, here it is cached
            else:
                self._session.log_parameters(run, stage.ingredients.get("params", {}))
            self._send_life(run, life, stage.name)
            if life.done is not None:
                made_here = True
                self._session.record_result(stage, entry, child=run.info.run_id)
        done = entry.done()
        if done is not None and not made_here and self._events.has_used(stage.name, done):
            self._session.record_result(stage, entry, child=None)

    def _send_life(self, run: Run, life: Life, stage: str) -> None:
        """Curves, the number of the last attempt, and how it ended."""
        there = self._session.steps(run)
        last: dict[str, int] = {}
        for attempt in life.attempts:
            records, damaged = curve_records(attempt)
            if damaged:
                self._notes.append(f"{stage}: {damaged} lines of {attempt.path / 'metrics.jsonl'} are damaged")
            points = curve_points(records, last)
            for point in points:
                last[point.key] = max(point.step, last.get(point.key, -1))
            new = [point for point in points if point.step not in there.get(point.key, ())]
            self._session.log_points(run.info.run_id, new)
        if run.data.tags.get("attempt") != str(life.last.number):
            self._session.tag(run.info.run_id, "attempt", str(life.last.number))
        if run.info.status != STATUS[life.state]:
            self._session.end(run.info.run_id, STATUS[life.state], _milliseconds(life.last, "ended"))


def _run_of(life: Life, known: Iterable[Run]) -> Run | None:
    """The nested run that has these attempts already; an entry that was deleted and made anew counts from 1 again."""
    numbers = {str(attempt.number) for attempt in life.attempts}
    for run in known:
        result = run.data.tags.get("result_id")
        same_result = None in (result, life.done) or result == life.done.result_id
        if run.data.tags.get("attempt") in numbers and same_result:
            return run
    return None


def _tags(attempt: Attempt, results: Iterable[Life]) -> dict[str, str]:
    """Where an attempt ran, and the source tree of the first of the results: only they record it."""
    job = slurm_job(attempt)
    tags = {"host": str(attempt.status.get("host"))} | ({} if job is None else {"slurm_job_id": job})
    made = sorted((life.done for life in results if life.done is not None), key=lambda done: done.finished)
    return tags | {"git_commit": str(made[0].git_commit), "git_dirty": str(made[0].git_dirty)} if made else tags


def _milliseconds(attempt: Attempt, moment: Moment) -> int | None:
    """Since the epoch; None if that is not recorded."""
    seconds = attempt.status.get(moment)
    return None if seconds is None else int(seconds * 1000)
