from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from toys import plan_of, planned

from pipeline.errors import Interrupted, StageFailed
from pipeline.executing.schedule import Schedule
from pipeline.plan import PlannedStage
from pipeline.recipe import Resources
from pipeline.runner import execute
from pipeline.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return Store(tmp_path / "store")


def diamond(store: Store, resources: Resources | None = None) -> list[PlannedStage]:
    """top -> left, right -> bottom, and a stage that stands alone."""
    top = planned(store, "top", "join", {"separator": "0"}, resources=resources)
    left = planned(store, "left", "join", {"separator": "1"}, [top], resources=resources)
    right = planned(store, "right", "join", {"separator": "2"}, [top], resources=resources)
    bottom = planned(store, "bottom", "join", {"separator": "3"}, [left, right], resources=resources)
    return [top, left, right, bottom, planned(store, "alone", "say", {"text": "x"}, resources=resources)]


class Recorder:
    """Makes stages by waiting a moment, and remembers which were at work together."""

    def __init__(self, failing: dict[str, Exception] | None = None) -> None:
        self.failing = failing or {}
        self.order: list[str] = []
        self.together: set[frozenset[str]] = set()
        self._working: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, stage: PlannedStage) -> str:
        with self._lock:
            self._working.add(stage.name)
            self.together.add(frozenset(self._working))
        time.sleep(0.1)
        with self._lock:
            self._working.remove(stage.name)
            self.order.append(stage.name)
        if stage.name in self.failing:
            raise self.failing[stage.name]
        return stage.name


def test_stages_that_do_not_need_each_other_run_together_and_never_before_what_they_need(store: Store) -> None:
    make = Recorder()
    stages = diamond(store, Resources(device="cpu"))
    assert Schedule(stages, make, jobs=2).run() == ["top", "left", "right", "bottom", "alone"]
    assert max(map(len, make.together)) == 2
    assert make.order.index("top") < min(make.order.index("left"), make.order.index("right"))
    assert make.order.index("bottom") > max(make.order.index("left"), make.order.index("right"))


def test_stages_of_several_processes_do_not_run_together(store: Store) -> None:
    make = Recorder()
    Schedule(diamond(store, Resources(launcher="torchrun", processes=2)), make, jobs=4).run()
    assert max(map(len, make.together)) == 1


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failure_stops_what_was_not_begun(store: Store, jobs: int) -> None:
    make = Recorder({"top": StageFailed("top broke")})
    with pytest.raises(StageFailed, match="top broke"):
        Schedule(diamond(store, Resources(device="cpu")), make, jobs=jobs).run()
    assert set(make.order) <= {"top", "alone"}
    assert "alone" not in make.order or jobs > 1, "it was at work when top failed"


@pytest.mark.parametrize("jobs", [1, 3])
def test_keep_going_runs_the_rest_and_names_what_was_blocked(store: Store, jobs: int) -> None:
    make = Recorder({"left": StageFailed("left broke"), "alone": StageFailed("alone broke")})
    with pytest.raises(StageFailed) as error:
        Schedule(diamond(store, Resources(device="cpu")), make, jobs=jobs, keep_going=True).run()
    assert sorted(make.order) == ["alone", "left", "right", "top"]
    assert set(str(error.value).split("\n\n")) == {
        "left broke",
        "alone broke",
        "not run, as they need what failed: bottom",
    }


@pytest.mark.parametrize("jobs", [1, 3])
def test_of_twins_the_first_makes_the_result_and_a_failure_is_that_of_both(store: Store, jobs: int) -> None:
    """Two names of one key: the second never starts beside the first, nor after it failed."""
    cpu = Resources(device="cpu")
    twins = [planned(store, name, "say", {"text": "same"}, resources=cpu) for name in ("one", "two")]
    readers = [planned(store, f"reader of {twin.name}", "join", {}, [twin], resources=cpu) for twin in twins]
    make = Recorder()
    Schedule([*twins, *readers], make, jobs=jobs).run()
    assert not any({"one", "two"} <= together for together in make.together)
    assert not any({"reader of one", "reader of two"} <= together for together in make.together)
    make = Recorder({"one": StageFailed("it broke")})
    with pytest.raises(StageFailed) as error:
        Schedule([*twins, *readers], make, jobs=jobs, keep_going=True).run()
    assert make.order == ["one"]
    assert str(error.value).split("\n\n") == [
        "it broke",
        "not run, as they need what failed: reader of one, reader of two",
        "not run, as a stage with the same options and inputs failed: two",
    ]


def test_an_interruption_waits_for_what_is_at_work_and_starts_nothing(store: Store) -> None:
    make = Recorder({"top": Interrupted("stopped")})
    with pytest.raises(Interrupted):
        Schedule(diamond(store, Resources(device="cpu")), make, jobs=2, keep_going=True).run()
    assert sorted(make.order) == ["alone", "top"]


def test_a_run_with_jobs_gives_what_a_run_without_gives(store: Store, tmp_path: Path) -> None:
    def results(name: str, jobs: int) -> dict[str, str]:
        place = Store(tmp_path / name / "store")
        hello, world = (planned(place, text, "say", {"text": text}) for text in ("hello", "world"))
        stages = [hello, world, planned(place, "joined", "join", {}, [hello, world])]
        result = execute(plan_of(tmp_path / name, *stages), out=lambda line: None, jobs=jobs)
        return {stage.name: (stage.out / "text.txt").read_text() for stage in result.stages}

    assert results("one", 1) == results("two", 2) == {"hello": "hello", "world": "world", "joined": "hello world"}


def test_keep_going_in_a_real_run(store: Store, tmp_path: Path) -> None:
    broken = planned(store, "broken", "misbehave", {"how": "stage error"})
    needs_it = planned(store, "needs_it", "join", {}, [broken])
    fine = planned(store, "fine", "say", {"text": "fine"})
    with pytest.raises(StageFailed, match=r"(?s)stage 'broken' failed.*not run, as they need what failed: needs_it"):
        execute(plan_of(tmp_path, broken, needs_it, fine), out=lambda line: None, keep_going=True)
    assert store.entry("say", fine.key).done() is not None
