"""The command and environment of a stage process, and the real torchrun."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import toys

from pipeline import launch
from pipeline.errors import EXIT_INTERRUPTED
from pipeline.recipe import Resources
from pipeline.store import Store


def test_a_local_stage_is_one_plain_process() -> None:
    built = launch.build(Path("a b/JOB.json"), Resources(threads=3))
    assert built.command == (sys.executable, "-m", "stages.worker", "a b/JOB.json")
    assert built.environment["OMP_NUM_THREADS"] == "3"
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in built.environment
    words = shlex.split(built.text())
    assert words[:3] == ["cd", os.getcwd(), "&&"]
    assert words[-4:] == list(built.command)
    assert "OMP_NUM_THREADS=3" in words


def test_torchrun_shares_the_cores_and_gives_the_stage_its_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    built = launch.build(Path("JOB.json"), Resources(launcher="torchrun", processes=4, grace_seconds=90.0))
    assert built.command[1:6] == ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4")
    assert built.environment["OMP_NUM_THREADS"] == "2"
    assert built.environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "90"


@pytest.mark.parametrize(("visible", "present", "expected"), [("", True, True), ("0", True, False), ("0", False, True)])
def test_deepspeed_is_told_when_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str, present: bool, expected: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(launch.glob, "glob", lambda pattern: ["/dev/nvidia0"] if present else [])
    environment = launch.build(Path("JOB.json"), Resources()).environment
    assert (environment.get("DS_ACCELERATOR") == "cpu") == expected


def test_what_was_started_is_recorded_without_the_users_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    started = launch.Launch((sys.executable, "-c", "import os; print(os.environ['ADDED'])"), {"ADDED": "some value"})
    assert launch.start(started, tmp_path, keep_open=()).wait() == 0
    assert (tmp_path / "log.txt").read_text() == "some value\n"
    recorded = json.loads((tmp_path / "env.json").read_text())
    assert recorded["environment"] == {"ADDED": "some value"}
    assert recorded["versions"]["python"] == sys.version.split()[0]
    assert "hunter2" not in "".join(path.read_text() for path in tmp_path.iterdir())
    assert "ADDED='some value'" in (tmp_path / "cmd.txt").read_text()


class TorchrunCount:
    """A run of one ``count`` stage on two ranks, up to its first checkpoint."""

    def __init__(self, runs: Path, *, grace_seconds: float, **config: object) -> None:
        resources = {"launcher": "torchrun", "processes": 2, "grace_seconds": grace_seconds}
        command = [sys.executable, toys.__file__, str(runs), json.dumps(config)]
        self.local_command = command
        self.process = subprocess.Popen([*command, json.dumps(resources)], stdout=subprocess.PIPE, text=True)
        store = Store(runs / "store")
        self.entry = store.entry("count", toys.planned(store, "count", "count", config).key)
        wait_until(lambda: self.entry.resume_point() is not None)

    def ranks(self) -> list[psutil.Process]:
        job = str(self.entry.path / "attempts" / "1" / "JOB.json")
        return [process for process in psutil.process_iter(["cmdline"]) if job in (process.info["cmdline"] or ())]


@pytest.fixture
def torchrun_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TorchrunCount]]:
    monkeypatch.setenv("PYTHONPATH", str(Path(toys.__file__).parent))
    made: list[TorchrunCount] = []

    def make(**options: object) -> TorchrunCount:
        made.append(TorchrunCount(tmp_path, **options))
        return made[-1]

    yield make
    for run in made:
        for process in [run.process, *run.ranks()]:
            process.kill()
        run.process.communicate()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_an_interruption_under_torchrun_is_no_failure(torchrun_count: Callable[..., TorchrunCount]) -> None:
    """torchrun turns exit code 75 of its ranks into 1."""
    run = torchrun_count(steps=60, seconds=0.03, grace_seconds=20)
    run.process.send_signal(signal.SIGINT)
    output, _ = run.process.communicate(timeout=30)
    assert run.process.returncode == EXIT_INTERRUPTED, output
    attempt = run.entry.last_attempt()
    assert attempt.state == "interrupted"
    steps = [json.loads(line)["step"] for line in (attempt.path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "only rank 0 writes metrics"
    finished = subprocess.run(run.local_command, capture_output=True, text=True, timeout=30)
    assert "going on from step" in finished.stdout, "the launcher is not part of the key"
    assert finished.returncode == 0
    assert (run.entry.out / "text.txt").read_text() == str(sum(range(61)))


def test_ranks_whose_runner_was_killed_save_and_end(torchrun_count: Callable[..., TorchrunCount]) -> None:
    run = torchrun_count(steps=2000, seconds=0.03, grace_seconds=20)
    run.process.kill()
    run.process.wait()
    assert run.entry.is_locked()
    wait_until(lambda: not run.entry.is_locked())
    assert run.ranks() == []
    assert json.loads((run.entry.last_attempt().path / "outcome.json").read_text())["state"] == "interrupted"


def test_no_rank_survives_the_end_of_its_grace(torchrun_count: Callable[..., TorchrunCount]) -> None:
    run = torchrun_count(steps=2000, seconds=0.03, stubborn=True, grace_seconds=0.5)
    assert len(run.ranks()) == 3, "torchrun and two ranks"
    run.process.terminate()
    output, _ = run.process.communicate(timeout=30)
    assert run.process.returncode == EXIT_INTERRUPTED, output
    assert run.ranks() == []
