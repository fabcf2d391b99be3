"""Executing plans of toy stages in real processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import toys
from toys import plan_of, planned

from pipeline import durable
from pipeline.errors import EXIT_INTERRUPTED, EXIT_KILLED, EXIT_LOCKED, Locked, StageFailed
from pipeline.executing.locks import FileLock
from pipeline.plan import PlannedStage
from pipeline.runner import RunResult, execute
from pipeline.store import Entry, Store
from stages.worker import EXIT_INTERRUPTED as WORKER_INTERRUPTED

DEADLINE_SECONDS = 20


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PYTHONPATH", str(Path(toys.__file__).parent))
    return Store(tmp_path / "store")


def run(store: Store, *stages: PlannedStage, name: str = "toy") -> tuple[RunResult, list[str]]:
    lines: list[str] = []
    return execute(plan_of(store.root.parent, *stages, name=name), out=lines.append), lines


def entry_of(store: Store, stage: PlannedStage) -> Entry:
    return store.entry(stage.uses, stage.key)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_chain_runs_once_and_is_cached_afterwards(store: Store) -> None:
    def chain() -> tuple[PlannedStage, ...]:
        hello = planned(store, "hello", "say", {"text": "hello"})
        world = planned(store, "sources/world", "say", {"text": "world"})
        return hello, world, planned(store, "join", "join", {"separator": ", "}, [hello, world])

    first, lines = run(store, *chain())
    assert (first.stages[2].out / "text.txt").read_text() == "hello, world"
    assert [stage.cached for stage in first.stages] == [False, False, False]
    assert "hello: saying hello" in lines
    second, lines = run(store, *chain())
    assert [stage.cached for stage in second.stages] == [True, True, True]
    assert [stage.out for stage in second.stages] == [stage.out for stage in first.stages]
    assert lines == ["hello: cached", "sources/world: cached", "join: cached"]


def test_the_run_directory_says_what_was_run(store: Store) -> None:
    hello = planned(store, "sources/hello", "say", {"text": "hello"})
    run(store, hello)
    directory = store.root.parent / "toy"
    assert (directory / "recipe.yaml").read_text() == "name: toy\n"
    assert (directory / "recipe.resolved.yaml").read_text() == "name: toy\n"
    assert (directory / "stages" / "sources" / "hello" / "out" / "text.txt").read_text() == "hello"
    assert not os.path.isabs(os.readlink(directory / "stages" / "sources" / "hello"))
    events = [json.loads(line)["event"] for line in (directory / "events.jsonl").read_text().splitlines()]
    assert events == ["started", "finished"]
    attempt = entry_of(store, hello).last_attempt()
    assert attempt.state == "finished"
    assert attempt.status["exit_code"] == 0
    done = entry_of(store, hello).done()
    assert done.run == "toy"
    assert done.metrics == {"length": 5}


def test_the_recorded_command_can_be_pasted(store: Store) -> None:
    hello = planned(store, "hello", "say", {"text": "hello"})
    run(store, hello)
    attempt = entry_of(store, hello).last_attempt().path
    job = json.loads((attempt / "JOB.json").read_text())
    subprocess.run((attempt / "cmd.txt").read_text(), shell=True, check=True, cwd="/", timeout=DEADLINE_SECONDS)
    assert (Path(job["out"]) / "text.txt").read_text() == "hello"


def test_two_stages_with_one_key_run_once(store: Store) -> None:
    twins = [planned(store, name, "say", {"text": "same"}) for name in ("teacher", "student")]
    result, _ = run(store, *twins)
    assert [stage.cached for stage in result.stages] == [False, True]
    assert len(entry_of(store, twins[0]).attempts()) == 1
    forced = [planned(store, name, "say", {"text": "same"}, forced=True) for name in ("teacher", "student")]
    run(store, *forced)
    assert len(entry_of(store, twins[0]).attempts()) == 2


def test_downstream_records_which_result_it_used(store: Store) -> None:
    hello = planned(store, "hello", "say", {"text": "hello"})
    join = planned(store, "join", "join", {}, [hello])
    run(store, hello, join)
    assert entry_of(store, join).done().upstream == {"hello": entry_of(store, hello).done().result_id}


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("stage error", "3 ids too many"),
        ("exception", "ZeroDivisionError: a bug"),
        ("no output", "text.txt is missing"),
        ("kill", "killed by signal 9"),
    ],
)
def test_a_failure_report_has_the_cause_the_log_and_the_next_command(store: Store, how: str, cause: str) -> None:
    stage = planned(store, "bad", "misbehave", {"how": how})
    with pytest.raises(StageFailed) as failure:
        run(store, stage)
    report = str(failure.value)
    attempt = entry_of(store, stage).last_attempt()
    assert cause in report.splitlines()[0]
    assert report.count(cause) == (2 if how == "exception" else 1), "a traceback repeats it; nothing else does"
    assert ("  the last words of a library" in report) == (how == "stage error")
    assert "(attempt 1, exit code" in report
    assert "  chatter 29" in report
    assert "  chatter 5" not in report.splitlines()
    assert f"full log: {attempt.log}" in report
    assert report.endswith(f"pipeline run toy.yaml --runs {store.root.parent}")
    assert attempt.state == "failed"
    assert entry_of(store, stage).done() is None
    assert ("Traceback" in attempt.log.read_text()) == (how == "exception")


def test_a_forced_stage_runs_though_its_upstream_gives_the_same_bytes_again(store: Store) -> None:
    hello = planned(store, "hello", "say", {"text": "hello"})
    run(store, hello, joined := planned(store, "joined", "join", {}, [hello]))
    again = planned(store, "hello", "say", {"text": "hello"}, forced=True)
    result, _ = run(store, again, planned(store, "joined", "join", {}, [again], forced=True))
    assert [stage.cached for stage in result.stages] == [False, False]
    assert len(entry_of(store, joined).attempts()) == 2


def test_a_failed_forced_run_leaves_the_old_result(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hello = planned(store, "hello", "say", {"text": "hello"})
    run(store, hello)
    monkeypatch.setattr(toys.TextArtifact, "required", ("text.txt", "missing.txt"))
    with pytest.raises(StageFailed, match=r"missing\.txt"):
        run(store, planned(store, "hello", "say", {"text": "hello"}, forced=True))
    assert (entry_of(store, hello).out / "text.txt").read_text() == "hello"
    assert entry_of(store, hello).done().attempt == 1


class ToyRun:
    """A run of one ``count`` stage in a process of its own."""

    def __init__(self, store: Store, **config: object) -> None:
        self.runs = store.root.parent
        self.stage = planned(store, "count", "count", config)
        self.entry = entry_of(store, self.stage)
        self.config = config
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, **resources: object) -> subprocess.Popen[str]:
        arguments = [str(self.runs), json.dumps(self.config), *([json.dumps(resources)] if resources else [])]
        process = subprocess.Popen(
            [sys.executable, toys.__file__, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.processes.append(process)
        return process

    def wait_for_step(self, step: int) -> None:
        wait_until((self.entry.work / "ckpt" / f"step-{step}" / "COMPLETE.json").exists)

    def stage_pid(self) -> int:
        return self.entry.last_attempt().status["pid"]


@pytest.fixture
def toy_run(store: Store) -> Iterator[Callable[..., ToyRun]]:
    made: list[ToyRun] = []

    def make(**config: object) -> ToyRun:
        made.append(ToyRun(store, **config))
        return made[-1]

    yield make
    for toy in made:
        for process in toy.processes:
            process.kill()
            process.wait()
            process.stdout.close()
        for attempt in toy.entry.attempts():
            if toy.entry.is_locked():
                os.killpg(attempt.status["pid"], signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stopped_run_saves_and_the_same_command_goes_on(
    toy_run: Callable[..., ToyRun], number: signal.Signals
) -> None:
    toy = toy_run(steps=30, seconds=0.03)
    process = toy.start()
    toy.wait_for_step(2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == EXIT_INTERRUPTED == WORKER_INTERRUPTED
    assert "saving, Ctrl-C again to kill" in output
    point = toy.entry.resume_point()
    assert f"goes on from {point} with: pipeline run" in output
    assert toy.entry.last_attempt().state == "interrupted"
    assert toy.entry.done() is None
    output, _ = toy.start().communicate(timeout=DEADLINE_SECONDS)
    assert f"going on from {point}" in output
    assert (toy.entry.out / "text.txt").read_text() == str(sum(range(31)))


def test_a_stage_that_does_not_stop_is_killed_after_its_grace(toy_run: Callable[..., ToyRun]) -> None:
    toy = toy_run(steps=400, seconds=0.05, stubborn=True)
    process = toy.start(grace_seconds=0.3)
    toy.wait_for_step(1)
    process.terminate()
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == EXIT_INTERRUPTED
    assert "did not save in time and was killed" in output
    assert not toy.entry.is_locked()


def test_a_second_interrupt_kills_at_once(toy_run: Callable[..., ToyRun]) -> None:
    toy = toy_run(steps=400, seconds=0.05, stubborn=True)
    process = toy.start(grace_seconds=60)
    toy.wait_for_step(1)
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if "saving" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == EXIT_KILLED
    assert toy.entry.last_attempt().state == "interrupted"


def test_a_second_run_is_refused_and_says_who_holds_it(toy_run: Callable[..., ToyRun]) -> None:
    toy = toy_run(steps=400, seconds=0.05)
    process = toy.start()
    toy.wait_for_step(1)
    second = toy.start()
    output, _ = second.communicate(timeout=DEADLINE_SECONDS)
    assert second.returncode == EXIT_LOCKED
    assert f"pid {process.pid} on" in output
    assert "toys.py" in output


def test_an_orphaned_stage_keeps_others_away_then_saves_and_ends(toy_run: Callable[..., ToyRun]) -> None:
    toy = toy_run(steps=80, seconds=0.05, stubborn=True)
    process = toy.start()
    toy.wait_for_step(1)
    process.kill()
    process.communicate()
    second = toy.start()
    output, _ = second.communicate(timeout=DEADLINE_SECONDS)
    assert second.returncode == EXIT_LOCKED
    assert "still saving" in output
    assert toy.entry.is_locked()


def test_a_stage_whose_runner_was_killed_stops_by_itself(toy_run: Callable[..., ToyRun]) -> None:
    toy = toy_run(steps=2000, seconds=0.05)
    process = toy.start()
    toy.wait_for_step(1)
    process.kill()
    process.communicate()
    wait_until(lambda: not toy.entry.is_locked())
    outcome = json.loads((toy.entry.last_attempt().path / "outcome.json").read_text())
    assert outcome["state"] == "interrupted"
    assert toy.entry.resume_point() is not None


def test_a_result_that_another_run_is_making_is_waited_for(store: Store, toy_run: Callable[..., ToyRun]) -> None:
    toy = toy_run(steps=20, seconds=0.05)
    process = toy.start()
    toy.wait_for_step(1)
    result, lines = run(store, toy.stage, name="other")
    assert result.stages[0].cached
    assert f"waiting for pid {process.pid}" in lines[0]
    assert len(toy.entry.attempts()) == 1


def test_the_lock_of_a_run_is_free_after_a_failure(store: Store) -> None:
    with pytest.raises(StageFailed):
        run(store, planned(store, "bad", "misbehave", {"how": "stage error"}))
    with FileLock(store.root.parent / "toy" / "run.lock").acquire(), pytest.raises(Locked):
        run(store, planned(store, "bad", "misbehave", {"how": "stage error"}))


def test_a_full_disk_is_no_fault_of_ours(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        if path.name == "status.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_json(path, value)

    write_json = durable.write_json
    monkeypatch.setattr(durable, "write_json", full)
    count = planned(store, "count", "count", {"steps": 10, "seconds": 0.05})
    with pytest.raises(durable.DiskFull, match=r"No space left on device .*status\.json"):
        run(store, count)
    wait_until(lambda: not entry_of(store, count).is_locked())
    monkeypatch.setattr(durable, "write_json", write_json)
    run(store, count)
    assert (entry_of(store, count).out / "text.txt").read_text() == "55"


def test_a_silent_stage_is_still_heard_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.executing.supervise.SILENCE_SECONDS", 0.2)
    _, lines = run(store, planned(store, "slow", "count", {"steps": 2, "seconds": 0.8}))
    between = lines[lines.index("slow: step 1/2") : lines.index("slow: step 2/2")]
    assert any(line.endswith(" s, step 1/2") for line in between)


def test_a_restarted_stage_discards_what_was_saved(store: Store) -> None:
    stage = planned(store, "count", "count", {"steps": 3})
    saved = entry_of(store, stage).work / "ckpt" / "step-2" / "COMPLETE.json"
    saved.parent.mkdir(parents=True)
    saved.write_text(json.dumps({"step": 2, "total": 100}))
    (entry_of(store, stage).work / "inputs.json").write_text("[]")
    run(store, replace(stage, restarted=True))
    assert (entry_of(store, stage).out / "text.txt").read_text() == "6", "not 103, which goes on from the 100"
