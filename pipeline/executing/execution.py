"""One execution of a plan: what every part of it needs, and what it has done so far."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import Interrupted
from pipeline.executing.locks import FileLock
from pipeline.executing.signals import StopSignals
from pipeline.plan import Plan, PlannedStage
from pipeline.store import Done, Store
from pipeline.views.display import Display

if TYPE_CHECKING:
    from pipeline.tracking.tracker import Tracker

GO_ON = "<the command that goes on>"
"""Stands in messages for the command that goes on: which that is depends on what else still gets done."""


@dataclass(frozen=True)
class Outstanding:
    """What was to be done anew and is not yet: the stages that a command must name again to finish the same work.

    Attributes:
        force: to be made though their results are there.
        restart: to be begun without what an earlier attempt saved.
    """

    force: tuple[str, ...]
    restart: tuple[str, ...]


Command = Callable[[Outstanding], str]
"""The command line that goes on where a run stopped."""


@dataclass
class Execution:
    """What an execution works with and what it has done.

    Attributes:
        plan, store: what to do, and where results are.
        lock: of the run, which stages inherit.
        stop: the signals that asked to stop.
        tracker: of this run; None tracks nothing.
        display: shows people what is going on.
        jobs: how many stages may run at the same time.
        results: stage -> its result, of the stages that are up to date.
        made: keys of the results that this execution made.
        begun: keys of the stages of which it began an attempt.
    """

    plan: Plan
    store: Store
    lock: FileLock
    stop: StopSignals
    tracker: Tracker | None
    display: Display
    jobs: int = 1
    results: dict[str, Done] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)

    def upstream(self, stage: PlannedStage) -> dict[str, str]:
        """The inputs of ``stage``: name of the stage that made each -> its ``result_id``."""
        return {name: self.results[name].result_id for name in stage.upstream}

    def outstanding(self) -> Outstanding:
        """What would be lost if the next command did not ask for it again."""
        pending = self.plan.pending
        return Outstanding(
            force=tuple(stage.name for stage in pending if stage.forced and stage.key not in self.made),
            restart=tuple(stage.name for stage in pending if stage.restarted and stage.key not in self.begun),
        )

    def raise_if_stopped(self) -> None:
        """Raises Interrupted if a signal asked this process to stop."""
        if self.stop.count:
            raise Interrupted(f"stopped between stages; nothing was lost. Go on with: {GO_ON}")

    def event(self, event: str, **values: Any) -> None:
        """Append to ``events.jsonl``, which tells but decides nothing."""
        record = {"time": time.time(), "event": event, **values}
        with (self.plan.run_directory / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
