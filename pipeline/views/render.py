"""What the command line shows of plans and runs: tables for people, and the same as JSON for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.estimates import Estimate
from pipeline.plan import Action, Plan, PlannedStage, State
from pipeline.reading.notes import notes
from pipeline.reading.problems import Location, dotted, leaves
from pipeline.reading.yaml_source import Origin
from pipeline.recipe import Recipe
from pipeline.request import SOURCES
from pipeline.store import Store
from pipeline.views.display import duration
from pipeline.views.overview import RunOverview
from stages import load_stage
from stages.artifacts import ModelArtifact, ReportArtifact
from stages.worker import PROGRESS_PREFIX

JSON_SCHEMA_VERSION = 1

_KEY_DIGITS = 12
_WIDTH_OF_A_LOG = 140
_TAIL_BYTES = 8192
_STYLES = {
    State.FRESH: "green",
    State.STALE: "yellow",
    State.MISSING: "",
    State.INTERRUPTED: "yellow",
    State.FAILED: "red",
    State.RUNNING: "cyan",
}


def print_table(table: Table, file: IO[str]) -> None:
    """Print to a terminal as wide as it is, to a log without squeezing."""
    Console(file=file, width=None if file.isatty() else _WIDTH_OF_A_LOG).print(table)


def table_width(file: IO[str]) -> int:
    """Columns that ``print_table`` has there."""
    return Console(file=file).width if file.isatty() else _WIDTH_OF_A_LOG


def plan_table(plan: Plan, expected: Mapping[str, Estimate]) -> Table:
    """One line a stage: its state, what will be done, why, and how long it may take, where that is known."""
    columns = ["stage", "state", "action", "reason", *(["about"] if expected else []), "key"]
    table = Table(*columns, box=None, header_style="bold", padding=(0, 1))
    for stage in plan.stages:
        idle = stage.action in (Action.SKIP, Action.LEAVE)
        action = Text(stage.action.value, style="" if idle else "bold")
        key = Text(stage.key[:_KEY_DIGITS], style="dim")
        about = [_about(expected.get(stage.name))] if expected else []
        table.add_row(Text(stage.name), _state(stage.state), action, Text(stage.reason), *about, key)
    return table


def _about(estimate: Estimate | None) -> str:
    return "" if estimate is None else duration(estimate.seconds)


def plan_json(plan: Plan, expected: Mapping[str, Estimate]) -> dict[str, Any]:
    """``plan_table`` for programs, with whole keys and the graph; null where nothing is known to expect."""
    return {
        "schema_version": JSON_SCHEMA_VERSION,
        "run": plan.recipe.name,
        "pending": len(plan.pending),
        "stages": [
            {
                "name": stage.name,
                "uses": stage.uses,
                "state": stage.state.value,
                "action": stage.action.value,
                "reason": stage.reason,
                "key": stage.key,
                "inputs": {name: list(others) for name, others in stage.inputs.items()},
                "expected": asdict(expected[stage.name]) if stage.name in expected else None,
            }
            for stage in plan.stages
        ],
        "notes": notes(plan.recipe),
    }


def run_status(plan: Plan) -> dict[str, Any]:
    """What is there of each stage: state, detail, and of a result when it was made, how fast, and its numbers."""
    return {
        "name": plan.recipe.name,
        "stages": [_stage_status(stage, Store(plan.runs / "store")) for stage in plan.stages],
    }


def status_table(run: Mapping[str, Any]) -> Table:
    """The value of ``run_status`` for a person."""
    table = Table("stage", "state", "finished", "took", "detail", box=None, header_style="bold", padding=(0, 1))
    for stage in run["stages"]:
        took = "" if stage["seconds"] is None else duration(stage["seconds"])
        table.add_row(
            Text(stage["name"]), _state(State(stage["state"])), _when(stage["finished"]), took, Text(stage["detail"])
        )
    return table


def overview_lines(runs: Sequence[RunOverview]) -> list[str]:
    """How far each run is, a line each: plain text, for there may be thousands."""
    width = max((len(run.name) for run in runs), default=0)
    return [
        f"{run.name:<{width}}  {run.state:<11}  {run.made:>3} of {run.stages:<3} stages  {_when(run.changed):<16}  "
        f"{run.detail}".rstrip()
        for run in runs
    ]


def _when(moment: float | None) -> str:
    """Seconds since the epoch as local time, to the minute."""
    return "" if moment is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def names_table(names: Mapping[str, str]) -> Table:
    """Names, each with a line on what it is."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    for name, line in names.items():
        table.add_row(Text(name, style="bold", no_wrap=True), Text(line))
    return table


def _state(state: State) -> Text:
    return Text(state.value, style=_STYLES[state])


def _stage_status(stage: PlannedStage, store: Store) -> dict[str, Any]:
    entry = store.entry(stage.uses, stage.key)
    done, attempt = entry.done(), entry.last_attempt()
    detail = stage.reason
    if stage.state is State.RUNNING and attempt is not None:
        detail = _last_progress(attempt.log) or detail
    return {
        "name": stage.name,
        "state": stage.state.value,
        "detail": detail,
        "finished": done.finished if done else None,
        "seconds": done.seconds if done else None,
        "metrics": dict(done.metrics) if done else {},
        "path": str(entry.path),
    }


def _last_progress(log: Path) -> str | None:
    """The newest progress line of a stage that is at work."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next(
        (line.removeprefix(PROGRESS_PREFIX) for line in reversed(lines) if line.startswith(PROGRESS_PREFIX)), None
    )


def value_sources(recipe: Recipe) -> list[tuple[str, Any, str]]:
    """Every value of the resolved recipe: key, value, and a line of the file, ``--set`` or ``default``."""
    found = []
    for location, value in leaves(recipe.resolved):
        origin = _origin(location, recipe.origins)
        source = f"{recipe.path.name}:{origin}" if isinstance(origin, int) else origin
        found.append((dotted(location), value, source or "default"))
    return found


def sources_table(sources: Sequence[tuple[str, Any, str]]) -> Table:
    """The value of ``value_sources`` for a person."""
    table = Table("key", "value", "from", box=None, header_style="bold", padding=(0, 1))
    for key, value, source in sources:
        table.add_row(Text(key), Text(_scalar(value)), Text(source, style="dim" if source == "default" else ""))
    return table


def _scalar(value: Any) -> str:
    """As YAML takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _origin(location: Location, origins: Mapping[Location, Origin]) -> Origin | None:
    """Where a value was written.

    A section speaks for all that is in it if it was given as one value (``${...}``) or as a mapping that stands for a
    list.
    """
    if location in origins:
        return origins[location]
    for length in range(len(location) - 1, 0, -1):
        parent = location[:length]
        if parent in origins:
            kind = type(location[length])
            given_in_parts = any(
                other[:length] == parent and len(other) > length and isinstance(other[length], kind)
                for other in origins
            )
            return None if given_in_parts else origins[parent]
    return None


def run_summary(plan: Plan) -> list[str]:
    """What a finished run has to show: the table of its last report, and where its models are."""
    own = [stage for stage in plan.stages if not stage.name.startswith(SOURCES) and stage.action is not Action.LEAVE]
    reports = [stage.name for stage in own if issubclass(load_stage(stage.uses).output, ReportArtifact)]
    models = [stage.name for stage in own if issubclass(load_stage(stage.uses).output, ModelArtifact)]
    lines = []
    if reports:
        lines += ["", (output_directory(plan, reports[-1]) / "table.txt").read_text(encoding="utf-8").rstrip(), ""]
    pages = {name: output_directory(plan, name) / "report.html" for name in reports}
    lines += _listing("models", {name: output_directory(plan, name) for name in models})
    lines += _listing("reports", {name: page if page.is_file() else page.parent for name, page in pages.items()})
    return lines


def output_directory(plan: Plan, name: str) -> Path:
    """A stage's result as people reach it: through the run's own directory."""
    return plan.run_directory / "stages" / name / "out"


def _listing(title: str, places: Mapping[str, Path]) -> list[str]:
    width = max(map(len, places), default=0)
    return [f"{title}:", *(f"  {name:<{width}}  {place}" for name, place in places.items())] if places else []
