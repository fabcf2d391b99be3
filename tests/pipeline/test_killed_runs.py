"""kill -9 of runners whose stages work side by side, and of two runs that share results: orphans included."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import forked_stages
import pytest
import yaml
from kill_points import killed_at
from toys import TextArtifact

from pipeline.errors import Locked
from pipeline.executing import locks
from pipeline.plan import Plan
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.runner import execute
from pipeline.store import Entry, Store
from stages import STAGES, stop_request
from stages.stage import Input, StageConfig, StageContext, StageInterrupted

DEADLINE_SECONDS = 60
STEPS = 6


class Alone:
    """Writes a text in steps, and notes a collision if another process is at work on the same result."""

    VERSION = 1
    inputs: Mapping[str, Input] = {}
    output = TextArtifact

    class Config(StageConfig):
        text: str

    def run(self, ctx: StageContext) -> None:
        place = ctx.work.parent
        busy = os.open(place / "busy", os.O_CREAT | os.O_RDWR)  # held until this process dies
        try:
            fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (place / "collision").touch()
            raise
        parts = [(path / "text.txt").read_text() for made in ctx.inputs.values() for path in made.values()]
        first = len(list(ctx.work.glob("ckpt/step-*/COMPLETE.json"))) + 1
        for step in range(first, STEPS + 1):
            checkpoint = ctx.work / "ckpt" / f"step-{step}"
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / "COMPLETE.json").write_text("{}")
            time.sleep(0.01)
            if ctx.should_stop():
                raise StageInterrupted(f"saved step {step}")
        (ctx.out / "text.txt").write_text(f"{ctx.config.text}({','.join(parts)})")


class AloneWithParts(Alone):
    inputs: Mapping[str, Input] = {"parts": Input(TextArtifact, many=True)}


STAGES.update({"alone": f"{__name__}:Alone", "alone-with-parts": f"{__name__}:AloneWithParts"})

Recipe = Mapping[str, Mapping[str, Any]]

DIAMOND: Recipe = {
    "left": {"text": "l"},
    "right": {"text": "r"},
    "both": {"text": "b", "needs": ["left", "right"]},
    "beside": {"text": "s", "needs": ["right"]},
}
DIAMOND_TEXTS = {"left": "l()", "right": "r()", "both": "b(l(),r())", "beside": "s(r())"}

OTHER: Recipe = DIAMOND | {"beside": {"text": "o", "needs": ["left"]}}
OTHER_TEXTS = DIAMOND_TEXTS | {"beside": "o(l())"}


@pytest.fixture(scope="module", autouse=True)
def _quickly() -> Iterator[None]:
    with (
        forked_stages.forked_stages(),
        mock.patch.object(stop_request, "_CHECK_SECONDS", 0.005),
        mock.patch.object(locks, "_POLL_SECONDS", 0.005),
    ):
        yield


class Place:
    """One run below ``root``, whose store others share."""

    def __init__(self, root: Path, name: str, stages: Recipe) -> None:
        self.root, self.file = root, root / f"{name}.yaml"
        root.mkdir(exist_ok=True)
        uses = {stage: "alone-with-parts" if options.get("needs") else "alone" for stage, options in stages.items()}
        recipe = {"name": name, "stages": {stage: {"uses": uses[stage], **stages[stage]} for stage in stages}}
        self.file.write_text(yaml.safe_dump(recipe, sort_keys=False))

    def plan(self) -> Plan:
        return make_plan(load_recipe(self.file), self.root / "runs")

    def run(self) -> None:
        execute(self.plan(), out=lambda line: None, jobs=2)

    def run_once_orphans_let_it(self) -> None:
        """As a person does who is told that a stage of a killed run is still saving."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                return self.run()
            except Locked:
                assert time.monotonic() < deadline, "an orphan does not end"
                time.sleep(0.01)

    def entries(self) -> dict[str, Entry]:
        store = Store(self.root / "runs" / "store")
        return {stage.name: store.entry(stage.uses, stage.key) for stage in self.plan().stages}

    def check_the_end(self, texts: Mapping[str, str]) -> None:
        assert self.plan().pending == ()
        for name, entry in self.entries().items():
            assert (entry.out / "text.txt").read_text() == texts[name]
            assert not (entry.path / "collision").exists(), f"{name} was made twice at once"
            assert not entry.is_locked()
            states = [attempt.state for attempt in entry.attempts()]
            assert states.count("finished") <= 1, f"{name} was made again though it was there: {states}"


@pytest.mark.parametrize("stride", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_a_runner_that_is_killed_while_stages_work_side_by_side(tmp_path: Path, stride: int) -> None:
    points = 0
    for number in itertools.count(stride // 2 + 1, stride):
        place = Place(tmp_path / str(number), "run", DIAMOND)
        point = killed_at(place.run, number, place.root / "runs")
        place.run_once_orphans_let_it()
        place.check_the_end(DIAMOND_TEXTS)
        if point is None:
            break
        points += 1
    assert points > 80 // stride, "the hook sees what the runner does"


def started(action: Callable[[], None]) -> int:
    """A process that does ``action``; it ends with 0 if nothing was raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("a run hangs")


@pytest.mark.parametrize("histories", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_two_runs_that_share_results_are_both_killed_and_both_run_again(tmp_path: Path, histories: int) -> None:
    for seed in range(histories):
        random_moments = random.Random(seed)
        places = [
            (Place(tmp_path / str(seed), "one", DIAMOND), DIAMOND_TEXTS),
            (Place(tmp_path / str(seed), "two", OTHER), OTHER_TEXTS),
        ]
        for _ in range(2):
            runs = [started(place.run_once_orphans_let_it) for place, _ in places]
            for run in random_moments.sample(runs, k=2):
                time.sleep(random_moments.uniform(0, 0.25))
                os.kill(run, signal.SIGKILL)
            for run in runs:
                os.waitpid(run, 0)
        again = [started(place.run_once_orphans_let_it) for place, _ in places]
        assert [ended(run) for run in again] == [0, 0]
        for place, texts in places:
            place.check_the_end(texts)
        first, second = (place.entries() for place, _ in places)
        assert {name for name in first if first[name].path == second[name].path} == {"left", "right", "both"}
