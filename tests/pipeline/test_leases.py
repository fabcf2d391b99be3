"""Locks on a file system without flock."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from toys import plan_of, planned

from pipeline.cli import main
from pipeline.errors import Locked
from pipeline.executing import leases, locks
from pipeline.executing.deaths import rank_states
from pipeline.executing.locks import FileLock, describe_holder, is_locked
from pipeline.runner import execute
from pipeline.store import Store

WITHOUT_FLOCK = """
import errno, fcntl
def flock(descriptor, operation):
    raise OSError(errno.ENOTSUP, "not supported")
fcntl.flock = flock
"""
HOLDER = """
import sys, time
from pathlib import Path
from pipeline.executing.locks import FileLock
with FileLock(Path(sys.argv[1])).acquire() as lock:
    print("lease" if lock.is_lease else "flock", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(locks.fcntl, "flock", flock)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.lock"


def test_a_lease_keeps_others_away_until_its_holder_is_killed(path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_FLOCK + HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "lease\n"
        assert is_locked(path)
        with pytest.raises(Locked, match=f"pid {process.pid} on"):
            FileLock(path).acquire()
        process.kill()
    assert not is_locked(path)
    with FileLock(path).acquire():
        assert f"pid {os.getpid()}" in describe_holder(path)
    assert not leases.lease_path(path).exists()
    assert [file.name for file in path.parent.iterdir()] == ["run.lock"], "no drafts are left behind"


def test_a_lease_of_another_machine_holds_whatever_its_age_and_process(path: Path) -> None:
    path.touch()
    record = {"host": "elsewhere", "pid": 1, "token": "t", "born": 0.0}
    leases.lease_path(path).write_text(json.dumps(record))
    os.utime(leases.lease_path(path), (0, 0))
    assert is_locked(path)
    with pytest.raises(Locked):
        FileLock(path).acquire()


def test_a_process_with_the_number_of_a_dead_holder_is_not_taken_for_it(path: Path) -> None:
    with FileLock(path).acquire():
        record = json.loads(leases.lease_path(path).read_text())
    leases.lease_path(path).write_text(json.dumps(record | {"born": f"1{record['born']}"}))
    assert not is_locked(path)


@pytest.mark.parametrize("turn", range(20))
def test_only_one_of_many_gets_the_lease_of_a_dead_holder(path: Path, turn: int) -> None:
    record = {"host": locks._own_info()["host"], "pid": 2**22 + 1, "token": "dead", "born": 0.0}
    leases.lease_path(path).write_text(json.dumps(record))
    tokens: list[str | None] = []
    start = threading.Barrier(8)

    def contend() -> None:
        start.wait()
        tokens.append(leases.take(path, locks._own_info()))

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([token for token in tokens if token is not None]) == 1
    assert [file.name for file in path.parent.iterdir()] == [leases.lease_path(path).name], "nothing else is left"


def test_a_lease_that_was_taken_over_is_not_released(path: Path) -> None:
    lock = FileLock(path).acquire()
    other = json.dumps({"host": "elsewhere", "pid": 1, "token": "other"})
    leases.lease_path(path).write_text(other)
    lock.release()
    assert leases.lease_path(path).read_text() == other


def test_a_run_says_once_that_leases_stand_for_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    said: list[str] = []
    store = Store(tmp_path / "store")
    stages = [planned(store, name, "say", {"text": name}) for name in ("one", "two")]
    execute(plan_of(tmp_path, *stages), out=said.append)
    assert sum("has no flock" in line for line in said) == 1
    assert list(tmp_path.rglob("*.lease")) == []


def test_a_rank_without_flock_is_alive_as_long_as_its_process(tmp_path: Path) -> None:
    rank = (
        f"{WITHOUT_FLOCK}\nimport sys\nfrom pathlib import Path\nfrom stages.ranks import Place, RankRecord\n"
        "RankRecord(Path(sys.argv[1]), Place())\nprint('written', flush=True)\ninput()\n"
    )
    command = [sys.executable, "-c", rank, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        assert [state.alive for state in rank_states(tmp_path)] == [True]
        process.kill()
    assert [(state.alive, state.silent) for state in rank_states(tmp_path)] == [(False, True)]


def test_unlock_removes_leases_only_of_who_is_sure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    (tmp_path / "recipe.yaml").write_text("name: words\nstages: {one: {uses: say, text: hi}}\n")
    assert main(["run", "recipe.yaml"]) == 0
    assert main(["unlock", "words"]) == 0
    lock = tmp_path / "runs" / "words" / "run.lock"
    leases.lease_path(lock).write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "t"}))
    assert main(["run", "recipe.yaml"]) == 4
    assert main(["unlock", "words"]) == 2
    assert "nothing was removed" in capsys.readouterr().err
    assert main(["unlock", "words", "--i-am-sure"]) == 0
    assert main(["run", "recipe.yaml"]) == 0
