"""``python -m stages.worker`` on its own, as a person would paste it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from stages.worker import PROGRESS_PREFIX, SCHEMA_VERSION

MODULE = """
import json
import os
import time
from stages.artifacts import Artifact
from stages.stage import StageConfig, StageError, StageInterrupted, StageUnavailable

class Probe:
    VERSION = 1
    inputs = {}
    output = Artifact
    class Config(StageConfig):
        action: str
        number: float = 1.5
        def check_processes(self, count):
            if count > int(os.environ["PROBES"]):
                super().check_processes(count)
    def run(self, ctx):
        print("chatter")
        ctx.progress(f"rank {ctx.rank} of {ctx.world_size}")
        ctx.metrics.log(3, loss=ctx.config.number)
        if ctx.config.action == "write":
            (ctx.out / "seen.txt").write_text(f"{ctx.inputs['parts']['up'].name} {ctx.resources['threads']}")
        if ctx.config.action == "environment":
            (ctx.out / "seen.txt").write_text(json.dumps(dict(os.environ)))
        if ctx.config.action == "refuse":
            raise StageError("there are no documents in data.train; give it a file with text")
        if ctx.config.action == "call":
            raise StageUnavailable("the hub does not answer")
        if ctx.config.action == "crash":
            raise KeyError("a bug")
        while ctx.config.action == "wait" and not ctx.should_stop():
            time.sleep(0.02)
        if ctx.config.action == "wait":
            raise StageInterrupted("saved step 3")
"""


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "probe_stage.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("work", "out"):
        (tmp_path / name).mkdir()
    return tmp_path


def start(
    attempt: Path, action: str, *, processes: int = 1, arguments: tuple[str, ...] = (), **changes: object
) -> subprocess.Popen[str]:
    """Start the worker; ``processes`` is how many the stage puts up with."""
    environment = {**os.environ, "PROBES": str(processes), **changes.pop("environment", {})}
    job = {
        "schema_version": SCHEMA_VERSION,
        "stage": "probe",
        "uses": "probe",
        "module": "probe_stage:Probe",
        "config": {"action": action},
        "inputs": {"parts": {"up": str(attempt / "upstream-directory")}},
        "work": str(attempt / "work"),
        "out": str(attempt / "out"),
        "attempt": str(attempt),
        "cache": str(attempt / "cache"),
        "resources": {"threads": 7},
        **changes,
    }
    (attempt / "JOB.json").write_text(json.dumps(job))
    return subprocess.Popen(
        [sys.executable, "-m", "stages.worker", *arguments, str(attempt / "JOB.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=20)
    return process.returncode, output, errors


def test_the_stage_gets_what_the_job_says(attempt: Path) -> None:
    code, output, errors = finish(start(attempt, "write"))
    assert (code, errors) == (0, "")
    assert output.splitlines() == ["chatter", f"{PROGRESS_PREFIX}rank 0 of 1"]
    assert (attempt / "out" / "seen.txt").read_text() == "upstream-directory 7"
    (record,) = [json.loads(line) for line in (attempt / "metrics.jsonl").read_text().splitlines()]
    assert (record["step"], record["loss"]) == (3, 1.5)
    assert not (attempt / "outcome.json").exists()


def test_other_ranks_have_a_log_of_their_own(attempt: Path) -> None:
    code, output, errors = finish(start(attempt, "write", environment={"RANK": "1", "WORLD_SIZE": "2"}, processes=2))
    assert (code, output, errors) == (0, "", "")
    assert (attempt / "ranks" / "1.log").read_text() == "chatter\n", "and they show no progress"
    assert not (attempt / "metrics.jsonl").exists()
    record = json.loads((attempt / "ranks" / "1.json").read_text())
    assert (record["rank"], record["state"]) == (1, "finished")


def test_the_argument_of_deepspeeds_launcher_is_understood(attempt: Path) -> None:
    code, _, errors = finish(start(attempt, "write", arguments=("--local_rank=0",)))
    assert (code, errors) == (0, "")


def test_what_may_pass_by_itself_has_an_exit_code_of_its_own(attempt: Path) -> None:
    code, _, errors = finish(start(attempt, "call"))
    assert code == 69
    assert errors.strip() == "error: the hub does not answer"
    outcome = json.loads((attempt / "outcome.json").read_text())
    assert (outcome["state"], outcome["explained"], outcome["transient"]) == ("failed", True, True)


def test_a_launcher_that_starts_another_number_of_processes_is_noticed(attempt: Path) -> None:
    """Several trainings, each with all the data, would write into one directory."""
    code, _, errors = finish(start(attempt, "write", resources={"processes": 2, "nodes": 2}))
    assert code == 1
    assert "4 processes were to work together, but the launcher says that there are 1" in errors
    assert json.loads((attempt / "outcome.json").read_text())["explained"] is True


def test_a_stage_for_one_process_refuses_several(attempt: Path) -> None:
    code, _, errors = finish(start(attempt, "write", environment={"RANK": "0", "WORLD_SIZE": "2"}))
    assert code == 1
    assert "this stage runs in one process, not in 2; use launcher: local" in errors


def test_a_gpu_that_torch_does_not_see(attempt: Path) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    code, _, errors = finish(start(attempt, "write", resources={"device": "gpu"}, environment=hidden))
    assert code == 1
    assert "rank 0 is to work on GPU 0 of" in errors
    assert "but torch sees 0 there" in errors


def test_a_stage_on_the_cpu_hides_the_gpus_from_every_library(attempt: Path) -> None:
    """DeepSpeed's launcher sets CUDA_VISIBLE_DEVICES itself."""
    process = start(attempt, "environment", resources={"device": "cpu"}, environment={"CUDA_VISIBLE_DEVICES": "0"})
    assert finish(process)[0] == 0
    environment = json.loads((attempt / "out" / "seen.txt").read_text())
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["DS_ACCELERATOR"]) == ("", "cpu")


def test_a_problem_of_the_user_is_told_without_a_traceback(attempt: Path) -> None:
    code, _, errors = finish(start(attempt, "refuse"))
    assert code == 1
    assert errors == "error: there are no documents in data.train; give it a file with text\n"
    outcome = json.loads((attempt / "outcome.json").read_text())
    assert outcome["state"] == "failed"
    assert outcome["message"].startswith("there are no documents")


def test_a_bug_leaves_its_traceback_in_the_log(attempt: Path) -> None:
    code, _, errors = finish(start(attempt, "crash"))
    assert code == 1
    assert "Traceback" in errors
    assert 'raise KeyError("a bug")' in errors
    outcome = json.loads((attempt / "outcome.json").read_text())
    expected = {"state": "failed", "message": "KeyError: 'a bug'", "rank": 0, "explained": False, "transient": False}
    assert outcome == expected


@pytest.mark.parametrize("changes", [{"module": "probe_stage:Missing"}, {"config": {"action": "write", "more": 1}}])
def test_a_stage_that_cannot_be_made_is_a_failure(attempt: Path, changes: dict[str, object]) -> None:
    code, _, errors = finish(start(attempt, "write", **changes))
    assert code == 1
    assert "Missing" in errors or "more" in errors
    assert json.loads((attempt / "outcome.json").read_text())["state"] == "failed"


def test_a_job_of_another_version_is_refused(attempt: Path) -> None:
    code, _, errors = finish(start(attempt, "write", schema_version=99))
    assert code == 1
    assert "schema_version 99" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_lets_the_stage_save(attempt: Path, number: signal.Signals) -> None:
    process = start(attempt, "wait")
    wait_for(attempt / "metrics.jsonl")
    process.send_signal(number)
    code, _, errors = finish(process)
    assert (code, errors) == (75, "")
    outcome = json.loads((attempt / "outcome.json").read_text())
    assert (outcome["state"], outcome["message"]) == ("interrupted", "saved step 3")


def test_the_first_rank_to_fail_is_the_cause(attempt: Path) -> None:
    (attempt / "outcome.json").write_text('{"state": "failed", "message": "rank 1 ran out of memory"}')
    process = start(attempt, "wait")
    wait_for(attempt / "metrics.jsonl")
    process.terminate()
    assert finish(process)[0] == 75
    assert json.loads((attempt / "outcome.json").read_text())["message"] == "rank 1 ran out of memory"


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
