"""How a process finds its place among others, and how it learns that it should stop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stages import stop_request
from stages.ranks import Place, find_place
from stages.stop_request import HEARTBEAT, RUNNER_VARIABLE, STOP_FILE, StopRequest

SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}


@pytest.mark.parametrize(
    ("environment", "launcher", "argument", "expected"),
    [
        ({}, "local", None, Place()),
        (TORCH, "torchrun", None, Place(3, 4, 2)),
        (SLURM, "slurm", None, Place(5, 8, 1)),
        (SLURM, "local", None, Place()),  # a stage that the shell of a job started, not srun
        ({**SLURM, **TORCH}, "torchrun", None, Place(3, 4, 2)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, "deepspeed", 1, Place(3, 4, 1)),
        (TORCH, None, None, Place(3, 4, 2)),
    ],
)
def test_the_launcher_says_who_a_process_is(
    environment: dict[str, str], launcher: str | None, argument: int | None, expected: Place
) -> None:
    assert find_place(environment, launcher, argument) == expected


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], StopRequest]:
    """A request that looks at every poll, and takes a runner for dead after 0.4 s without a sign of life."""
    monkeypatch.setattr(stop_request, "_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(stop_request, "HEARTBEAT_SECONDS", 0.4)
    monkeypatch.setenv(RUNNER_VARIABLE, "another-host:1")
    return lambda: StopRequest(tmp_path)


def test_a_file_asks_to_stop(tmp_path: Path, asked: Callable[[], StopRequest]) -> None:
    request = asked()
    assert not request()
    (tmp_path / STOP_FILE).touch()
    assert request()


def test_a_runner_on_another_machine_is_alive_as_long_as_its_heart_beats(
    tmp_path: Path, asked: Callable[[], StopRequest]
) -> None:
    heartbeat = tmp_path / HEARTBEAT
    heartbeat.touch()
    request = asked()
    for beat in range(1, 5):
        time.sleep(0.15)
        os.utime(heartbeat, (time.time() + beat, time.time() + beat))
        assert not request()
    heartbeat.unlink()
    assert not request()
    time.sleep(0.5)
    assert request()


@pytest.mark.parametrize("stale", [True, False])
def test_a_pasted_command_has_no_runner(tmp_path: Path, asked: Callable[[], StopRequest], stale: bool) -> None:
    if stale:
        (tmp_path / HEARTBEAT).touch()
        os.utime(tmp_path / HEARTBEAT, (0, 0))
    request = asked()
    time.sleep(0.5)
    assert not request()


def test_a_runner_among_our_ancestors_is_watched_itself(
    asked: Callable[[], StopRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUNNER_VARIABLE, f"{stop_request.socket.gethostname()}:{os.getppid()}")
    request = asked()
    time.sleep(0.5)
    assert not request(), "no heartbeat is needed"
    monkeypatch.setattr(os, "getppid", lambda: 1)  # what the kernel says once a parent has died
    assert request()
