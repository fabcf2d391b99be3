"""Who died first, from what launchers print and what ranks wrote."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.executing.deaths import Death, first_death, rank_states
from pipeline.executing.outcome import interpret
from pipeline.store import Attempt

TORCHRUN = """\
E1122 15:00:00 api.py:984] failed (exitcode: 1) local_rank: 0 (pid: 10) of binary: python
stages.worker FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-22_15:00:02
  host      : node
  rank      : 2 (local_rank: 2)
  exitcode  : 1 (pid: 12)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_15:00:00
  host      : node
  rank      : ROOT (local_rank: 0)
  exitcode  : CODE (pid: 10)
"""
DEEPSPEED = """\
[2026-11-22 15:00:00,1] [INFO] [launch.py:335:sigkill_handler] Killing subprocess 10
[2026-11-22 15:00:00,2] [ERROR] [launch.py:341:sigkill_handler] ['python', 'JOB.json'] exits with return code = CODE
"""


def torchrun(rank: int, code: int) -> str:
    return TORCHRUN.replace("ROOT", str(rank)).replace("CODE", str(code))


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("nothing", None),
        (torchrun(0, -9), Death(0, 9)),
        (torchrun(1, 1), Death(1, None)),
        (DEEPSPEED.replace("CODE", "-11"), Death(None, 11)),
        ("srun: error: n1: task 3: Killed\nsrun: error: n1: tasks 0-2: Terminated\n", Death(3, 9)),
        ("srun: error: n1: tasks 2-3: Exited with exit code 1\n", Death(2, None)),
        ("srun: error: n1: task 0: Segmentation fault (core dumped)\n", Death(0, 11)),
    ],
)
def test_what_launchers_print(log: str, expected: Death | None) -> None:
    assert first_death(log) == expected


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[..., Attempt]:
    """An attempt whose ranks wrote these states last, and that are all dead."""

    def make(*states: str, log: str = "", outcome: dict[str, object] | None = None) -> Attempt:
        (tmp_path / "ranks").mkdir(exist_ok=True)
        for rank, state in enumerate(states):
            facts = {"rank": rank, "pid": 100 + rank, "host": "node", "state": state}
            (tmp_path / "ranks" / f"{rank}.json").write_text(json.dumps(facts))
        (tmp_path / "log.txt").write_text(log)
        if outcome is not None:
            (tmp_path / "outcome.json").write_text(json.dumps(outcome))
        return Attempt(1, tmp_path, {})

    return make


def test_a_rank_is_alive_as_long_as_its_record_is_locked(attempt: Callable[..., Attempt]) -> None:
    path = attempt("running", "finished").path
    descriptor = os.open(path / "ranks" / "0.json", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert [(state.alive, state.silent) for state in rank_states(path)] == [(True, False), (False, False)]
    os.close(descriptor)
    assert [(state.alive, state.silent) for state in rank_states(path)] == [(False, True), (False, False)]
    (path / "ranks" / "0.json").write_text('{"rank"')
    assert [state.silent for state in rank_states(path)] == [True, False], "it died in the middle of writing"


CRASH = {"state": "failed", "message": "RuntimeError: Connection closed by peer", "rank": 0, "explained": False}
EXPLAINED = {"state": "failed", "message": "the data makes no batch", "rank": 0, "explained": True}
INTERRUPTED = {"state": "interrupted", "message": "stopped after step 3", "rank": 0, "explained": False}


def test_the_dead_rank_is_the_cause_and_what_the_others_say_follows(attempt: Callable[..., Attempt]) -> None:
    ending = interpret(attempt("failed", "running", log=torchrun(1, -9), outcome=CRASH), 1, None, asked=False)
    assert (ending.state, ending.rank) == ("failed", 1)
    assert ending.message == (
        "rank 1 (pid 101 on node) was killed by signal 9, SIGKILL (out of memory?); then rank 0 failed: RuntimeError: "
        "Connection closed by peer"
    )


@pytest.mark.parametrize(
    ("log", "outcome", "exit_code", "code", "transient"),
    [
        ("torchrun", None, 1, 137, False),
        ("", None, -9, 137, False),
        ("", None, 3, 3, False),
        ("", {"state": "failed", "message": "KeyError: 'x'"}, 1, 1, False),
        ("", {"state": "failed", "message": "no hub", "explained": True, "transient": True}, 1, 69, True),
    ],
)
def test_the_code_is_that_of_the_rank_whatever_the_launcher_makes_of_it(
    attempt: Callable[..., Attempt],
    log: str,
    outcome: dict[str, object] | None,
    exit_code: int,
    code: int,
    transient: bool,
) -> None:
    states = ("failed", "running") if log else ("failed",)
    made = attempt(*states, log=torchrun(1, -9) if log else "", outcome=outcome)
    ending = interpret(made, exit_code, None, asked=False)
    assert (ending.state, ending.code, ending.transient, ending.final) == ("failed", code, transient, False)


def test_a_rank_that_was_killed_because_another_failed_is_not_the_cause(attempt: Callable[..., Attempt]) -> None:
    crash = CRASH | {"message": "OutOfMemoryError: CUDA out of memory"}
    ending = interpret(attempt("failed", "running", log=torchrun(0, 1), outcome=crash), 1, None, asked=False)
    assert (ending.rank, ending.message) == (0, "OutOfMemoryError: CUDA out of memory")


def test_a_message_for_the_user_is_the_cause_whoever_died_after_it(attempt: Callable[..., Attempt]) -> None:
    ending = interpret(attempt("failed", "running", log="", outcome=EXPLAINED), 1, None, asked=False)
    assert (ending.rank, ending.message) == (0, EXPLAINED["message"])


def test_ranks_that_end_on_request_have_not_died(attempt: Callable[..., Attempt]) -> None:
    ending = interpret(attempt("interrupted", "running", outcome=INTERRUPTED), 1, None, asked=True)
    assert ending.state == "interrupted"


def test_a_survivor_that_saves_does_not_hide_a_death(attempt: Callable[..., Attempt]) -> None:
    made = attempt("interrupted", "running", log=DEEPSPEED.replace("CODE", "-9"), outcome=INTERRUPTED)
    ending = interpret(made, 247, None, asked=False)
    assert (ending.state, ending.rank) == ("failed", 1)
    assert "rank 1 (pid 101 on node) was killed by signal 9" in ending.message


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        (
            "RuntimeError: [gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 6000ms for recv",
            "timeout_minutes",
        ),
        ("DistBackendError: Watchdog caught collective operation timeout: WorkNCCL", "timeout_minutes"),
        ("RuntimeError: [gloo/pair.cc:537] Read error [10.0.0.1]: Connection reset by peer.", "another rank is gone"),
    ],
)
def test_errors_of_collective_operations_are_explained(
    attempt: Callable[..., Attempt], message: str, meaning: str
) -> None:
    ending = interpret(attempt("failed", "failed", outcome=CRASH | {"message": message}), 1, None, asked=False)
    assert ending.message.startswith(message)
    assert meaning in ending.message
