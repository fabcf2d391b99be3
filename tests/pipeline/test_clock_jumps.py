"""The clock is set back or forward, between runs and within them: nothing becomes stale, negative or free by it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import forked_stages
import psutil
import pytest
import yaml
from forked_stages import recipe_of

from pipeline.cli import main
from pipeline.estimates import estimates
from pipeline.executing import leases, locks
from pipeline.plan import Plan
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.request import Request
from pipeline.runner import execute
from pipeline.store import Store

STAGES = {"first": {"text": "a"}, "second": {"text": "b", "needs": ["first"]}}
DAY = 86_400.0


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    with forked_stages.forked_stages():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(STAGES)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    return tmp_path


def plan(folder: Path, request: Request = Request()) -> Plan:  # noqa: B008 - frozen
    return make_plan(load_recipe(folder / "recipe.yaml"), folder / "runs", request)


def clock(*, jump: float) -> Callable[[], float]:
    """A clock that is set by ``jump`` seconds at every look."""
    true_time, looks = time.time, 0

    def look() -> float:
        nonlocal looks
        looks += 1
        return true_time() + jump * looks

    return look


@pytest.mark.parametrize("jump", [-DAY, -3600.0, 3600.0, DAY])
def test_a_clock_that_jumps_within_a_run_makes_no_duration_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    monkeypatch.setattr(time, "time", clock(jump=jump))
    lines: list[str] = []
    execute(plan(folder), out=lines.append)
    store = Store(folder / "runs" / "store")
    for stage in plan(folder).stages:
        entry = store.entry(stage.uses, stage.key)
        status = json.loads((entry.last_attempt().path / "status.json").read_text())
        assert 0 <= entry.done().seconds < 60
        assert 0 <= status["ended"] - status["started"] < 60
    assert plan(folder).pending == ()
    events = [json.loads(line) for line in (folder / "runs" / "grown" / "events.jsonl").read_text().splitlines()]
    assert all(0 <= event["seconds"] < 60 for event in events if "seconds" in event)
    told = [line for line in lines if "done in" in line]
    assert len(told) == 2
    assert not any(re.search(r"-\d|\d (?:h|day)", line) for line in told), told


@pytest.mark.parametrize("days", [-400, -1, 1, 400])
def test_dates_of_files_decide_nothing(folder: Path, capsys: pytest.CaptureFixture[str], days: int) -> None:
    execute(plan(folder), out=lambda line: None)
    then = time.time() + days * DAY
    for path in (folder / "runs").rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)
    assert plan(folder).pending == ()
    assert all(0 <= each.seconds < 60 for each in estimates(plan(folder, Request(force_all=True))).values())
    for command in (["status"], ["status", "grown"], ["ls", "runs"], ["plan", "recipe.yaml"], ["clean"], ["verify"]):
        assert main(command) == 0, capsys.readouterr()
    capsys.readouterr()
    assert main(["run", "recipe.yaml"]) == 0
    assert "attempt" not in capsys.readouterr().out


def test_an_attempt_from_the_future_is_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was interrupted, and the clock was set back before the next."""
    stages = {"first": {"text": "a", "fate": "die"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(stages)))
    true_time = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: true_time() + 30 * DAY)
        with pytest.raises(Exception, match="first"):
            execute(plan(folder), out=lambda line: None)
    stages["first"]["fate"] = "finish"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(stages)))
    lines: list[str] = []
    execute(plan(folder), out=lines.append)
    assert any("going on from step 1" in line for line in lines), lines
    (entry,) = (folder / "runs" / "store" / "seed").iterdir()
    assert [json.loads((entry / "attempts" / n / "status.json").read_text())["state"] for n in "12"] == [
        "failed",
        "finished",
    ]


@pytest.mark.parametrize("jump", [-DAY, -1.0, 1.0, DAY])
def test_a_lease_holds_while_its_holder_lives_whatever_the_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    # Linux gives a process's begin in ticks since the boot; as a time of day it moves with the clock.
    path = tmp_path / "run.lock"
    token = leases.take(path, locks._own_info())
    own = psutil.Process().create_time()
    boot = psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot + jump)
    assert psutil.Process().create_time() != own
    assert leases.is_held(path)
    assert leases.take(path, locks._own_info()) is None, "another's attempt does not break it"
    leases.release(path, token)
    assert not leases.is_held(path)


def test_a_result_that_says_it_took_less_than_no_time_is_no_wonder(folder: Path) -> None:
    execute(plan(folder), out=lambda line: None)
    for path in (folder / "runs" / "store").glob("*/*/DONE.json"):
        record = json.loads(path.read_text()) | {"seconds": -7200.0}
        del record["checksum"]
        path.write_text(json.dumps(record))
    expected = estimates(plan(folder, Request(force_all=True)))
    assert [each.seconds for each in expected.values()] == [0.0, 0.0]
