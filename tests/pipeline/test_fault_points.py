"""kill -9 of the runner and of a stage at every change of the file system, and what the next run makes of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import forked_stages
import pytest
import yaml
from forked_stages import recipe_of
from kill_points import Who, killed_at

from pipeline.plan import Action, Plan
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.request import Request
from pipeline.runner import execute
from pipeline.store import Entry, Store

STAGES = {"first": {"text": "a"}, "second": {"text": "b", "needs": ["first"]}}
TEXTS = {"first": "a()", "second": "b(a())"}


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    with forked_stages.forked_stages():
        yield


class Place:
    """A recipe of two stages, and the store below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        (root / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(STAGES)))

    def plan(self, request: Request = Request()) -> Plan:  # noqa: B008 - frozen
        return make_plan(load_recipe(self.root / "recipe.yaml"), self.root / "runs", request)

    def run(self, request: Request = Request()) -> list[str]:  # noqa: B008
        lines: list[str] = []
        execute(self.plan(request), out=lines.append)
        return lines

    def entries(self) -> dict[str, Entry]:
        store = Store(self.root / "runs" / "store")
        return {stage.name: store.entry(stage.uses, stage.key) for stage in self.plan().stages}

    def wait_for_orphans(self) -> None:
        """A stage whose runner was killed still holds its locks until it ends."""
        while any(entry.is_locked() for entry in self.entries().values()):
            time.sleep(0.005)


def check_nothing_partial_counts(place: Place) -> None:
    for name, entry in place.entries().items():
        assert entry.problem() is None
        if entry.done() is not None:
            assert (entry.out / "text.txt").read_text() == TEXTS[name]


def check_the_end(place: Place) -> None:
    """All is there, and people find it."""
    assert place.plan().pending == ()
    for name, entry in place.entries().items():
        link = place.root / "runs" / "grown" / "stages" / name
        assert (link / "out" / "text.txt").read_text() == TEXTS[name]
        assert entry.out == (link / "out").resolve()


def check_kill(place: Place, number: int, who: Who, request: Request) -> str | None:
    """Kill a run at its ``number``-th change, and bring the recipe up to date again; returns where it was killed."""
    point = killed_at(lambda: place.run(request), number, place.root / "runs", who)
    place.wait_for_orphans()
    check_nothing_partial_counts(place)
    predicted = {stage.name for stage in place.plan().stages if stage.action is not Action.SKIP}
    lines = place.run()
    assert {line.split(":")[0] for line in lines if ": attempt" in line} == predicted
    check_the_end(place)
    return point


@pytest.mark.parametrize("who", ["leader", "others"])
@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_change_loses_nothing_that_was_finished(tmp_path: Path, who: Who, stride: int) -> None:
    points = []
    for number in itertools.count(1, stride):
        point = check_kill(Place(tmp_path / str(number)), number, who, Request())
        if point is None:
            break
        points.append(point)
    assert len(points) > (60 if who == "leader" else 8) // stride, "the hook sees what the runner and stages do"


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_forced_run_that_is_killed_leaves_the_old_result_or_the_new_one(tmp_path: Path, stride: int) -> None:
    for number in itertools.count(1, stride):
        place = Place(tmp_path / str(number))
        place.run()
        if check_kill(place, number, "leader", Request(force_all=True)) is None:
            break
        first = place.entries()["first"]
        published = first.done().attempt == first.last_attempt().number
        lines = place.run(Request(force=("first",)))
        if published:
            gone_on_with = [line for line in lines if line.startswith("first: ") and "going on" in line]
            assert gone_on_with == [], "its result is there; what it saved on the way is of no use any more"
        check_the_end(place)
