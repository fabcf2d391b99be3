"""The links of a run to its results: ``runs/NAME/stages/STAGE``, and ``runs/NAME/earlier/STAGE`` for other options.

A run leads to what its recipe asks for and to nothing else, also while it is being brought up to date. What it led to
before is under ``earlier`` until the stage has a new result.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline import durable
from pipeline.plan import Plan
from pipeline.store import Entry, Store

STAGES, EARLIER = "stages", "earlier"


def lead_to(directory: Path, stage: str, entry: Entry) -> None:
    """Link to the result of a stage from the run's ``directory``."""
    durable.replace_link(directory / STAGES / stage, entry.path)
    (directory / EARLIER / stage).unlink(missing_ok=True)


def set_aside(plan: Plan) -> None:
    """Move the links that ``plan`` does not ask for. A kill leaves each in one of the places, or in both."""
    directory, store = plan.run_directory, Store(plan.runs / "store")
    entries = {stage.name: store.entry(stage.uses, stage.key).path.resolve() for stage in plan.stages}
    for link in list(_links(directory / STAGES)):
        stage = link.relative_to(directory / STAGES)
        if entries.get(stage.as_posix()) != link.resolve():
            durable.replace_link(directory / EARLIER / stage, link.resolve())
            link.unlink()


def latest(directory: Path, stage: str) -> Path:
    """Where the run's newest result of a stage is, be it of these options or of earlier ones; it may be missing."""
    link = directory / STAGES / stage
    return link if link.is_symlink() else directory / EARLIER / stage


def every(runs: Path) -> Iterator[tuple[str, Path]]:
    """All links of all runs, as ``run/stage`` and where they lead to."""
    for directory in sorted(runs.glob("*/")):
        for place in (STAGES, EARLIER):
            for link in _links(directory / place):
                yield f"{directory.name}/{link.relative_to(directory / place).as_posix()}", link.resolve()


def _links(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.glob("**/*")) if path.is_symlink())
