"""In which order stages run, which at the same time, and what a failure stops (runner specification, R11 and R17)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipeline.errors import StageFailed
from pipeline.executing.devices import gpu_visible
from pipeline.plan import Action, PlannedStage

Result = TypeVar("Result")


def needs_the_machine(stage: PlannedStage) -> bool:
    """Whether no second stage of that kind should run beside this one: several processes, or a GPU."""
    resources = stage.resources
    return resources.launcher != "local" or (resources.device != "cpu" and gpu_visible())


@dataclass
class Schedule(Generic[Result]):
    """Brings stages up to date, each after those that it reads. Of stages with one key, the first makes the result.

    Attributes:
        stages: in an order in which they can run one after another.
        make: brings one stage up to date; raises StageFailed if it fails. Called in a thread of its own if ``jobs`` is
            above 1.
        jobs: how many stages may run at the same time; of those that need the machine, one.
        keep_going: when a stage fails, go on with those that do not need it.
    """

    stages: Sequence[PlannedStage]
    make: Callable[[PlannedStage], Result]
    jobs: int = 1
    keep_going: bool = False
    _results: dict[str, Result] = field(default_factory=dict)
    _failures: dict[str, StageFailed] = field(default_factory=dict)
    _blocked: list[str] = field(default_factory=list)
    _twins: list[str] = field(default_factory=list)
    _failed_keys: set[str] = field(default_factory=set)

    def run(self) -> list[Result]:
        """The results of all stages that are not left alone, in plan order.

        Raises:
            StageFailed: one failed, or several did; the message has every report and names what was not run.
            Exception: whatever else ``make`` raised first; stages at work have ended by then.
        """
        wanted = [stage for stage in self.stages if stage.action is not Action.LEAVE]
        if self.jobs == 1:
            self._one_by_one(wanted)
        else:
            self._side_by_side(wanted)
        self._raise_failures()
        return [self._results[stage.name] for stage in wanted]

    def _one_by_one(self, wanted: Sequence[PlannedStage]) -> None:
        for stage in wanted:
            if self._is_blocked(stage):
                continue
            try:
                self._results[stage.name] = self.make(stage)
            except StageFailed as failure:
                self._fail(stage, failure)
                if not self.keep_going:
                    return

    def _side_by_side(self, wanted: Sequence[PlannedStage]) -> None:
        waiting = list(wanted)
        working: dict[Future[Result], PlannedStage] = {}
        first_error: BaseException | None = None
        with ThreadPoolExecutor(self.jobs, thread_name_prefix="stage") as pool:
            while True:
                stopping = first_error is not None or (self._failures and not self.keep_going)
                if not stopping:
                    for stage in self._startable(waiting, working.values()):
                        waiting.remove(stage)
                        working[pool.submit(self.make, stage)] = stage
                if not working:
                    break
                for future in wait(working, return_when=FIRST_COMPLETED).done:
                    stage, error = working.pop(future), future.exception()
                    if error is None:
                        self._results[stage.name] = future.result()
                    elif isinstance(error, StageFailed):
                        self._fail(stage, error)
                    else:
                        first_error = first_error or error
        if first_error is not None:
            raise first_error

    def _fail(self, stage: PlannedStage, failure: StageFailed) -> None:
        self._failures[stage.name] = failure
        self._failed_keys.add(stage.key)

    def _startable(self, waiting: list[PlannedStage], working: Sequence[PlannedStage]) -> Iterator[PlannedStage]:
        """Those of ``waiting`` that can start beside ``working``; blocked ones are taken out of ``waiting``."""
        waiting[:] = [stage for stage in waiting if not self._is_blocked(stage)]
        free = self.jobs - len(working)
        machine_taken = any(needs_the_machine(stage) for stage in working)
        keys = {stage.key for stage in working}
        for stage in list(waiting):
            if free == 0:
                return
            if stage.key in keys or any(other not in self._results for other in stage.upstream):
                continue
            if needs_the_machine(stage):
                if machine_taken:
                    continue
                machine_taken = True
            free -= 1
            keys.add(stage.key)
            yield stage

    def _is_blocked(self, stage: PlannedStage) -> bool:
        """Whether something that it needs failed or was itself blocked, or a stage failed that makes the same."""
        twin = stage.key in self._failed_keys
        if twin:
            self._twins.append(stage.name)
        lost = {*self._failures, *self._twins, *self._blocked}
        blocked = not twin and not lost.isdisjoint(stage.upstream)
        if blocked:
            self._blocked.append(stage.name)
        return twin or blocked

    def _raise_failures(self) -> None:
        if not self._failures:
            return
        reports = [str(failure) for failure in self._failures.values()]
        if self._blocked:
            reports.append(f"not run, as they need what failed: {', '.join(self._blocked)}")
        if self._twins:
            reports.append(f"not run, as a stage with the same options and inputs failed: {', '.join(self._twins)}")
        raise StageFailed("\n\n".join(reports))
