"""``plan`` says what ``run`` will do: over random graphs, whatever happened to the store before."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forked_stages
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.errors import Interrupted, RecipeError, StageFailed
from pipeline.plan import Action, Plan, PlannedStage
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.request import Request
from pipeline.runner import execute
from pipeline.store import Done, Entry, Store

GOING_ON = re.compile(r"(?P<name>\w+): attempt \d+(?P<resumed>, going on from step \d)?")

FATES = ("finish", "fail", "stop", "die")


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    with forked_stages.forked_stages():
        yield


@dataclass
class Place:
    """A recipe that changes, and the store below ``root``."""

    root: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def plan(self, request: Request = Request()) -> Plan:  # noqa: B008 - frozen
        file = self.root / "recipe.yaml"
        file.write_text(yaml.safe_dump(forked_stages.recipe_of(self.stages), sort_keys=False))
        return make_plan(load_recipe(file), self.root / "runs", request)

    def entry(self, stage: PlannedStage) -> Entry:
        return Store(self.root / "runs" / "store").entry(stage.uses, stage.key)

    def text(self, stage: PlannedStage) -> str:
        return (self.entry(stage).out / "text.txt").read_text()


@dataclass
class Expectation:
    """What a plan says of a run, worked out without the runner.

    ``begun`` holds the stages that get an attempt, with whether it goes on from a checkpoint; ``ended`` says what ends
    the run early.
    """

    begun: dict[str, bool] = field(default_factory=dict)
    ended: type[Exception] | None = None


def expected(
    plan: Plan,
    before: dict[str, Done | None],
    begun_with: dict[str, list[str] | None],
    place: Place,
    *,
    keep_going: bool,
) -> Expectation:
    """Read off the plan, and, for what only has to run because something before it does, off the bytes that came out:
    a stage whose inputs are the same again is as up to date as before."""
    said = Expectation()
    lost: set[str] = set()
    begun_keys: set[str] = set()
    lost_keys: set[str] = set()
    for stage in plan.stages:
        if stage.action in (Action.SKIP, Action.LEAVE):
            continue
        if lost & set(stage.upstream) or stage.key in lost_keys:
            lost.add(stage.name)
            continue
        if stage.key in begun_keys:
            continue
        done = before[stage.name]
        upstream = [place.entry(plan.stage(name)).done() for name in stage.upstream]
        same = done is not None and set(done.upstream.values()) == {made.result_id for made in upstream if made}
        if same and not stage.forced and not stage.reason.startswith("code changed"):
            continue
        begun_keys.add(stage.key)
        used = sorted(made.result_id for made in upstream if made)
        resumed = stage.action is Action.RESUME and (
            not stage.reason.endswith("if its inputs come out as before") or begun_with[stage.name] == used
        )
        said.begun[stage.name] = resumed
        if stage.config.fate == "finish" or resumed:
            continue
        said.ended = Interrupted if stage.config.fate == "stop" else StageFailed
        if said.ended is Interrupted or not keep_going:
            break
        lost.add(stage.name)
        lost_keys.add(stage.key)
    return said


def run(plan: Plan, *, keep_going: bool) -> Expectation:
    """What a run does, in the same terms."""
    done = Expectation()
    lines: list[str] = []
    try:
        execute(plan, out=lines.append, keep_going=keep_going)
    except (StageFailed, Interrupted) as error:
        done.ended = type(error)
    for line in lines:
        if match := GOING_ON.fullmatch(line):
            done.begun[match["name"]] = match["resumed"] is not None
    return done


DAMAGES = ("DONE.json", "text.txt", "out", "attempts", "entry")


def damage(entry: Entry, what: str) -> None:
    """Somebody deletes a part of a result."""
    target = {
        "DONE.json": entry.done_path,
        "text.txt": entry.out / "text.txt",
        "out": entry.out,
        "attempts": entry.path / "attempts",
        "entry": entry.path,
    }[what]
    if target.is_dir():
        shutil.rmtree(os.path.realpath(target))
    else:
        target.unlink(missing_ok=True)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """Up to five stages of few texts; some are twins: two names of one key, each perhaps with readers of its own."""
    stages: dict[str, dict[str, Any]] = {}
    for index in range(draw(st.integers(1, 5))):
        if stages and draw(st.integers(0, 2)) == 2:
            stages[f"s{index}"] = dict(stages[draw(st.sampled_from(list(stages)))])
            continue
        needs = [name for name in stages if draw(st.booleans())]
        options = {"text": draw(st.sampled_from("ab")), "fickle": draw(st.booleans())}
        stages[f"s{index}"] = options | ({"needs": needs} if needs else {})
    return stages


@st.composite
def requests(draw: st.DrawFn, names: list[str]) -> Request:
    """Mostly everything; else some selection."""
    some = st.lists(st.sampled_from(names), max_size=2, unique=True).map(tuple)
    rarely = st.one_of(st.just(()), st.just(()), some)
    return Request(
        start=draw(rarely),
        until=draw(rarely),
        only=draw(rarely),
        force=draw(rarely),
        force_all=draw(st.integers(0, 7)) == 7,
        restart=draw(rarely),
    )


def change_something(data: st.DataObject, place: Place) -> None:
    """What people and disks do between two runs."""
    names = list(place.stages)
    for name in names:
        place.stages[name].pop("fate", None)
    for name in data.draw(st.lists(st.sampled_from(names), max_size=2, unique=True), label="edited"):
        place.stages[name]["text"] = data.draw(st.sampled_from("abc"))
    for name in data.draw(st.lists(st.sampled_from(names), max_size=2, unique=True), label="ill-fated"):
        place.stages[name]["fate"] = data.draw(st.sampled_from(FATES))
    plan = place.plan()
    for name in data.draw(st.lists(st.sampled_from(names), max_size=1, unique=True), label="damaged"):
        damage(place.entry(plan.stage(name)), data.draw(st.sampled_from(DAMAGES)))


def check(data: st.DataObject, place: Place) -> None:
    """One plan and one run."""
    request = data.draw(requests(list(place.stages)), label="request")
    keep_going = data.draw(st.booleans(), label="keep going")
    try:
        plan = place.plan(request)
    except RecipeError:  # what selections may not be is the matter of test_request.py and test_planner.py
        return
    before = {stage.name: place.entry(stage).done() for stage in plan.stages}
    begun_with = {stage.name: place.entry(stage).begun_with() for stage in plan.stages}
    done = run(plan, keep_going=keep_going)
    assert done == expected(plan, before, begun_with, place, keep_going=keep_going), [
        (stage.name, stage.action, stage.reason) for stage in plan.stages
    ]
    for stage in plan.stages:
        if stage.action is Action.LEAVE and stage.key not in {other.key for other in plan.pending}:
            assert place.entry(stage).done() == before[stage.name]


def check_everything_can_be_brought_up_to_date(place: Place) -> None:
    """The end of every history: one run without mishaps makes all results, of their inputs and no others."""
    for options in place.stages.values():
        options.pop("fate", None)
    execute(place.plan(), out=lambda line: None)
    plan = place.plan()
    assert plan.pending == ()
    for stage in plan.stages:
        inputs = ",".join(place.text(plan.stage(name)) for name in stage.upstream)
        told, text = f"{stage.config.text}({inputs})", place.text(stage)
        assert text[: len(told)] == told
        assert len(text) == len(told) + (16 if stage.config.fickle else 0)


def check_history(data: st.DataObject, root: Path) -> None:
    place = Place(root, data.draw(graphs(), label="graph"))
    for _ in range(data.draw(st.integers(1, 4), label="rounds")):
        change_something(data, place)
        check(data, place)
    check_everything_can_be_brought_up_to_date(place)


# Shrinking a history takes minutes, and the histories are short.
LIGHT = settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@LIGHT
@given(data=st.data())
def test_a_plan_says_what_a_run_does(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    check_history(data, tmp_path_factory.mktemp("history"))


@pytest.mark.slow
@settings(LIGHT, max_examples=150)
@given(data=st.data())
def test_a_plan_says_what_a_run_does_in_many_histories(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    check_history(data, tmp_path_factory.mktemp("history"))
