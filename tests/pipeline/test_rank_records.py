"""Stages on two real ranks: under every launcher, asked to stop, and with one of the processes killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import RankRun, wait_until

from pipeline.errors import EXIT_INTERRUPTED, EXIT_STAGE_FAILED
from pipeline.executing.supervise import ranks_alive

# The stand-in of srun costs a second, the real launchers import torch: each of those has the tests that matter most.
SLOW = {name: pytest.param(name, marks=pytest.mark.slow) for name in ("torchrun", "accelerate", "deepspeed")}
SLURM_FIRST = ("slurm", *SLOW.values())


@pytest.fixture
def resources(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], dict[str, object]]:
    """What a recipe says for two ranks under a launcher."""

    def of(launcher: str) -> dict[str, object]:
        given: dict[str, object] = {"launcher": launcher, "grace_seconds": 20}
        if launcher == "accelerate":
            config = {"distributed_type": "MULTI_GPU", "use_cpu": True, "num_processes": 2, "num_machines": 1}
            path = tmp_path / "accelerate.yaml"
            path.write_text(json.dumps({"compute_environment": "LOCAL_MACHINE", "machine_rank": 0, **config}))
            given["accelerate_config"] = str(path)
        if launcher == "slurm":
            request.getfixturevalue("allocation")
            given |= {"nodes": 2, "processes": 1}
        return given

    return of


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate", "slurm", SLOW["deepspeed"]])
def test_every_launcher_tells_the_ranks_who_they_are(
    rank_run: Callable[..., RankRun], resources: Callable[[str], dict[str, object]], launcher: str
) -> None:
    run = rank_run(resources(launcher), steps=3)
    code, output = run.finish()
    assert code == 0, output
    seen = [json.loads((run.attempt / "ranks" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [(record["rank"], record["state"]) for record in seen] == [(0, "finished"), (1, "finished")]
    environment = json.loads((run.entry.out / "environment.json").read_text())
    assert {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} == {
        "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0",
    }  # fmt: skip
    assert environment["MASTER_ADDR"]
    assert environment["MASTER_PORT"].isdecimal()


@pytest.mark.parametrize("launcher", ["torchrun", SLOW["accelerate"]])
def test_ranks_that_wait_for_one_that_failed_before_they_met_end_with_it(
    rank_run: Callable[..., RankRun], resources: Callable[[str], dict[str, object]], launcher: str
) -> None:
    """They are in a collective call, where no request to stop is seen, and would wait for half an hour."""
    run = rank_run(resources(launcher) | {"grace_seconds": 1, "timeout_minutes": 30}, steps=3, unready=True)
    code, output = run.finish()
    assert code == EXIT_STAGE_FAILED, output
    assert "rank 0 has no tokenizer; copy it there" in output
    assert not ranks_alive(run.attempt)


@pytest.mark.parametrize("launcher", SLURM_FIRST)
def test_the_recorded_command_of_every_launcher_can_be_pasted(
    rank_run: Callable[..., RankRun], resources: Callable[[str], dict[str, object]], launcher: str
) -> None:
    run = rank_run(resources(launcher), steps=3)
    assert run.finish()[0] == 0
    out = Path(json.loads((run.attempt / "JOB.json").read_text())["out"])
    assert not out.exists()
    subprocess.run(["bash", run.attempt / "cmd.txt"], cwd="/", check=True, timeout=120, capture_output=True)
    assert (out / "text.txt").read_text() == "6"


def test_an_interruption_under_torchrun_is_no_failure(
    rank_run: Callable[..., RankRun], resources: Callable[[str], dict[str, object]]
) -> None:
    """torchrun turns exit code 75 of its ranks into 1."""
    run = rank_run(resources("torchrun"), steps=60, seconds=0.03)
    run.process.send_signal(signal.SIGINT)
    code, output = run.finish()
    assert code == EXIT_INTERRUPTED, output
    assert run.entry.last_attempt().state == "interrupted"
    steps = [json.loads(line)["step"] for line in (run.attempt / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "only rank 0 writes metrics"
    finished = subprocess.run(run.local_command, capture_output=True, text=True, timeout=30)
    assert "going on from step" in finished.stdout, "the launcher is not part of the key"
    assert finished.returncode == 0
    assert (run.entry.out / "text.txt").read_text() == str(sum(range(61)))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_every_process_at_once_saves(
    rank_run: Callable[..., RankRun],
    resources: Callable[[str], dict[str, object]],
    launcher: str,
    number: signal.Signals,
) -> None:
    """As a batch system preempts: the runner, the launcher and the ranks all get it."""
    run = rank_run(resources(launcher), steps=2000, seconds=0.03)
    for process in [run.process, *run.workers()]:
        process.send_signal(number)
    code, output = run.finish()
    assert code == EXIT_INTERRUPTED, output
    assert [json.loads(path.read_text())["state"] for path in run.attempt.glob("ranks/*.json")] == ["interrupted"] * 2


@pytest.mark.parametrize("launcher", SLURM_FIRST)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_runner_reaches_the_ranks_alone(
    rank_run: Callable[..., RankRun],
    resources: Callable[[str], dict[str, object]],
    launcher: str,
    number: signal.Signals,
) -> None:
    """SIGTERM makes DeepSpeed's launcher kill the ranks after 30 s, and srun at once."""
    run = rank_run(resources(launcher), steps=2000, seconds=0.03)
    run.process.send_signal(number)
    code, output = run.finish()
    assert code == EXIT_INTERRUPTED, output
    assert "forcing job termination" not in (run.attempt / "log.txt").read_text()
    assert [json.loads(path.read_text())["state"] for path in run.attempt.glob("ranks/*.json")] == ["interrupted"] * 2
    assert json.loads((run.attempt / "outcome.json").read_text())["state"] == "interrupted"


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("torchrun", signal.SIGKILL), ("slurm", signal.SIGKILL), ("slurm", signal.SIGSEGV),
        *(pytest.param(name, signal.SIGKILL, marks=pytest.mark.slow) for name in ("accelerate", "deepspeed")),
        pytest.param("torchrun", signal.SIGSEGV, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_dead_rank_is_named_with_its_signal_and_its_log(
    rank_run: Callable[..., RankRun],
    resources: Callable[[str], dict[str, object]],
    launcher: str,
    number: signal.Signals,
) -> None:
    run = rank_run(resources(launcher), steps=2000, seconds=0.03)
    pid = run.rank(1).pid
    os.kill(pid, number)
    code, output = run.finish()
    assert code == 1
    report = output[output.index("stage 'count' failed") :]
    assert f"rank 1 (pid {pid} on " in report.splitlines()[0]
    assert f"was killed by signal {int(number)}, {number.name}" in report.splitlines()[0]
    assert f"full log: {run.attempt}/ranks/1.log and {run.attempt}/log.txt" in report
    assert run.workers() == []
    if number == signal.SIGSEGV:
        assert "Fatal Python error: Segmentation fault" in (run.attempt / "ranks" / "1.log").read_text()
    again = subprocess.Popen(run.local_command, stdout=subprocess.PIPE, text=True)
    assert "going on from step" in again.stdout.readline()
    again.terminate()
    again.communicate()


@pytest.mark.parametrize("launcher", SLURM_FIRST)
def test_ranks_whose_launcher_was_killed_save_and_end(
    rank_run: Callable[..., RankRun], resources: Callable[[str], dict[str, object]], launcher: str
) -> None:
    run = rank_run(resources(launcher), steps=2000, seconds=0.03)
    os.kill(run.entry.last_attempt().status["pid"], signal.SIGKILL)
    code, output = run.finish()
    assert code == 1
    assert "its launcher has ended, its ranks are saving" in output
    assert "killed by signal 9, SIGKILL (out of memory?); its ranks saved and ended" in output
    assert [json.loads(path.read_text())["state"] for path in run.attempt.glob("ranks/*.json")] == ["interrupted"] * 2


@pytest.mark.parametrize("launcher", SLURM_FIRST)
def test_ranks_whose_runner_was_killed_save_and_end(
    rank_run: Callable[..., RankRun], resources: Callable[[str], dict[str, object]], launcher: str
) -> None:
    run = rank_run(resources(launcher), steps=2000, seconds=0.03)
    run.process.kill()
    run.process.wait()
    assert run.entry.is_locked()
    wait_until(lambda: not run.entry.is_locked())
    assert run.workers() == []
    assert json.loads((run.attempt / "outcome.json").read_text())["state"] == "interrupted"


@pytest.mark.parametrize("launcher", SLURM_FIRST)
def test_no_rank_survives_the_end_of_its_grace(
    rank_run: Callable[..., RankRun], resources: Callable[[str], dict[str, object]], launcher: str
) -> None:
    run = rank_run(resources(launcher) | {"grace_seconds": 0.5}, steps=2000, seconds=0.03, stubborn=True)
    assert len(run.workers()) >= 3, "a launcher and two ranks"
    run.process.terminate()
    code, output = run.finish()
    assert code == EXIT_INTERRUPTED, output
    assert run.workers() == []


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("launcher", ["slurm", SLOW["torchrun"], SLOW["accelerate"]])
def test_the_next_run_waits_for_ranks_that_outlived_runner_and_launcher(
    rank_run: Callable[..., RankRun], resources: Callable[[str], dict[str, object]], launcher: str, stubborn: bool
) -> None:
    """Nobody holds the locks then, but two attempts must not write into one directory."""
    run = rank_run(resources(launcher) | {"grace_seconds": 0.5}, steps=100, seconds=0.1, stubborn=stubborn)
    ranks = [run.rank(number) for number in (0, 1)]
    for rank in ranks:
        rank.suspend()  # so that they do not notice before the next run starts
    first = run.attempt
    run.process.kill()
    psutil.Process(run.entry.last_attempt().status["pid"]).kill()
    run.process.wait()
    wait_until(lambda: not run.entry.is_locked())
    second = subprocess.Popen(run.local_command, stdout=subprocess.PIPE, text=True)
    try:
        wait_until((first / "stop").exists)
        assert run.attempt == first, "no attempt is begun while ranks of the last one live"
        for rank in ranks:
            rank.resume()
        line = second.stdout.readline()
        assert "waiting for rank 0 (pid" in line
        assert "of attempt 1, which outlived its runner, to save" in line
        assert "attempt 2" in second.stdout.readline()
        assert ranks_alive(first) == []
    finally:
        second.kill()
        second.communicate()
        for process in run.workers():
            process.kill()
