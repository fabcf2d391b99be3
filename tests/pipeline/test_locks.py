"""Locks that die with their holders and are passed on to children on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import EXIT_LOCKED, Locked
from pipeline.executing.locks import FileLock, describe_holder, is_locked

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.executing.locks import FileLock
with FileLock(Path(sys.argv[1])).acquire():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "run.lock"


def start_holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_holder_is_refused_by_name_until_the_first_is_killed(path: Path) -> None:
    with start_holder(path) as process:
        assert is_locked(path)
        with pytest.raises(Locked, match=rf"pid {process.pid} on .+ since .+: .*deep/run\.lock") as refusal:
            FileLock(path).acquire()
        assert refusal.value.exit_code == EXIT_LOCKED
        process.kill()
    assert not is_locked(path)
    with FileLock(path).acquire():
        assert f"pid {os.getpid()}" in describe_holder(path)


def test_a_child_that_inherits_the_descriptor_keeps_the_lock(path: Path) -> None:
    with FileLock(path).acquire() as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=lock.descriptors)
        stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_locked(path)
    child.communicate(b"\n")
    assert not is_locked(path), "a child that was not handed the lock must not hold it"
    stranger.communicate(b"\n")


def test_waiting_ends_when_the_lock_is_free_or_when_the_caller_gives_up(path: Path) -> None:
    with start_holder(path) as process:
        with pytest.raises(InterruptedError):
            FileLock(path).wait(give_up)
        turns = []

        def release_at_second_turn() -> None:
            turns.append(is_locked(path))
            if len(turns) == 2:
                process.kill()

        with FileLock(path).wait(release_at_second_turn):
            assert turns[:2] == [True, True]


def give_up() -> None:
    raise InterruptedError


def test_looking_takes_nothing_and_creates_nothing(path: Path) -> None:
    assert not is_locked(path)
    assert not path.exists()
    with FileLock(path).acquire():
        assert is_locked(path)
    assert not is_locked(path)


def test_a_lock_file_that_was_deleted_meanwhile_is_not_mistaken_for_the_lock(path: Path) -> None:
    with FileLock(path).acquire():
        path.unlink()
        with FileLock(path).acquire():
            assert is_locked(path)
