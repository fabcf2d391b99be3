"""Failures that may pass: which are tried again, how often, and what a person is told."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked_stages
import pytest
from pydantic import ValidationError
from toys import plan_of, planned

from pipeline.errors import Interrupted, StageFailed
from pipeline.executing import retries
from pipeline.executing.outcome import Outcome
from pipeline.plan import PlannedStage
from pipeline.reading.resources import Resources
from pipeline.runner import execute
from pipeline.store import Entry, Store


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.01)
    with forked_stages.forked_stages():
        yield


class Flaky:
    """A run of one stage that fails ``failures`` times before it does not."""

    def __init__(self, root: Path, failures: int, how: str = "unavailable", **resources: Any) -> None:
        store = Store(root / "store")
        options = {"failures": failures, "how": how}
        self.stage = planned(store, "flaky", "flaky", options, resources=Resources(**resources))
        self.runs, self.entry = root, store.entry("flaky", self.stage.key)
        self.lines: list[str] = []

    def run(self, stage: PlannedStage | None = None) -> None:
        execute(plan_of(self.runs, stage or self.stage), out=self.lines.append)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.runs / "toy" / "events.jsonl").read_text().splitlines()]


def states(entry: Entry) -> list[tuple[str, int]]:
    return [(attempt.state, attempt.status["retry"]) for attempt in entry.attempts()]


def test_a_failure_that_may_pass_is_tried_again_from_what_was_saved(tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, failures=2, retries=2)
    flaky.run()
    assert (flaky.entry.out / "text.txt").read_text() == "3"
    assert states(flaky.entry) == [("failed", 0), ("failed", 1), ("finished", 2)]
    assert flaky.lines == [
        "flaky: attempt 1",
        "flaky: attempt 1 failed with exit code 69: the hub does not answer; retry 1 of 2 in 0.0 s",
        "flaky: attempt 2, going on from step 1",
        "flaky: attempt 2 failed with exit code 69: the hub does not answer; retry 2 of 2 in 0.0 s",
        "flaky: attempt 3, going on from step 2",
        "flaky: publishing",
        flaky.lines[-1],
    ]
    told = [(event["event"], event.get("exit_code"), event.get("retry")) for event in flaky.events()]
    assert told == [
        ("started", None, None),
        ("failed", None, None),
        ("retrying", 69, 1),
        ("started", None, None),
        ("failed", None, None),
        ("retrying", 69, 2),
        ("started", None, None),
        ("finished", None, None),
    ]


@pytest.mark.parametrize(
    ("how", "resources", "attempts"),
    [
        ("unavailable", {}, 1),
        ("unavailable", {"retries": 1}, 2),
        ("kill", {"retries": 2}, 1),
        ("kill", {"retries": 2, "retry_on": [137]}, 3),
        ("kill", {"retries": 2, "retry_on": [1, 9]}, 1),
        ("exception", {"retries": 2, "retry_on": [137]}, 1),
        ("exception", {"retries": 1, "retry_on": [1]}, 2),
        ("stage error", {"retries": 2, "retry_on": [1, 69]}, 1),
        ("no output", {"retries": 2, "retry_on": [1]}, 1),
    ],
)
def test_what_is_tried_again_and_how_often(tmp_path: Path, how: str, resources: dict[str, Any], attempts: int) -> None:
    flaky = Flaky(tmp_path, failures=9, how=how, **resources)
    with pytest.raises(StageFailed):
        flaky.run()
    assert states(flaky.entry) == [("failed", number) for number in range(attempts)]
    assert flaky.entry.done() is None


def test_the_report_of_a_final_failure_names_every_attempt_of_the_run(tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, failures=9, how="kill", retries=1, retry_on=[137])
    for first in (1, 3):
        with pytest.raises(StageFailed) as failure:
            flaky.run()
        report = str(failure.value).splitlines()
        death = "killed by signal 9, SIGKILL (out of memory?)"
        logs = [flaky.entry.path / "attempts" / str(first + number) / "log.txt" for number in (0, 1)]
        assert report[:2] == [
            f"stage 'flaky' failed (attempt {first + 1}, exit code 137): {death}",
            f"so did attempt {first} (exit code 137): {death}; its log: {logs[0]}",
        ]
        assert f"full log: {logs[1]}" in report
        assert report[-1].startswith(f"try again from step {first + 1} with: ")


def test_a_restarted_stage_is_begun_anew_once_not_at_every_retry(tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, failures=1)
    with pytest.raises(StageFailed):
        flaky.run()
    again = replace(flaky.stage, restarted=True, resources=Resources(retries=1))
    flaky.lines.clear()
    flaky.run(again)
    assert flaky.lines[0] == "flaky: attempt 2"
    assert "flaky: attempt 3, going on from step 1" in flaky.lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_wait_for_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 100.0)
    flaky = Flaky(tmp_path, failures=1, retries=1)

    class Listener(list[str]):
        def append(self, line: str) -> None:
            super().append(line)
            if "retry 1 of 1 in 1 min 40 s" in line:
                threading.Timer(0.2, os.kill, (os.getpid(), number)).start()

    flaky.lines = Listener()
    with pytest.raises(Interrupted, match="was interrupted; it goes on from step 1 with: pipeline run"):
        flaky.run()
    flaky.run()
    assert (flaky.entry.out / "text.txt").read_text() == "2"


def test_a_retried_stage_does_not_keep_others_from_running(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    resources = Resources(retries=3, device="cpu")
    stages = [
        planned(store, name, "flaky", {"failures": failures}, resources=resources)
        for name, failures in (("once", 1), ("thrice", 3), ("never", 0))
    ]
    execute(plan_of(tmp_path, *stages), out=lambda line: None, jobs=2)
    texts = [(store.entry("flaky", stage.key).out / "text.txt").read_text() for stage in stages]
    assert texts == ["2", "4", "1"]


def test_pauses_double_up_to_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 10.0)
    assert [retries.pause(number) for number in range(1, 9)] == [10, 20, 40, 80, 160, 300, 300, 300]
    assert retries.pause(100) == 300


def test_what_the_stage_understood_is_never_tried_again() -> None:
    every_code = Resources(retries=1, retry_on=[code for code in range(1, 256) if code != 75])
    assert not retries.may_pass(Outcome("failed", 1, "no documents", final=True), every_code)
    assert retries.may_pass(Outcome("failed", 1, "a bug"), every_code)
    assert retries.may_pass(Outcome("failed", 69, "no answer", transient=True), Resources(retries=1))


@pytest.mark.parametrize(
    ("resources", "problem"),
    [
        ({"retries": -1}, "greater than or equal to 0"),
        ({"retries": 101}, "less than or equal to 100"),
        ({"retry_on": [137]}, "retry_on has no effect without retries"),
        ({"retries": 1, "retry_on": [0]}, "greater than or equal to 1"),
        ({"retries": 1, "retry_on": [256]}, "less than or equal to 255"),
        ({"retries": 1, "retry_on": ["137"]}, "valid integer"),
        ({"retries": 1, "retry_on": [75]}, "asked to save and stop"),
    ],
)
def test_options_that_cannot_work_are_refused(resources: dict[str, Sequence[int]], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Resources(**resources)
