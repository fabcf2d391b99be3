"""The command and environment of a stage's processes, and what is recorded of them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import launch
from pipeline.executing import devices
from pipeline.recipe import Resources


def built(**resources: object) -> launch.Launch:
    return launch.build(Path("/attempt/JOB.json"), launch.settled(Resources(**resources)))


def test_a_local_stage_is_one_plain_process() -> None:
    local = launch.build(Path("a b/JOB.json"), Resources(threads=3))
    assert local.command == (sys.executable, "-m", "stages.worker", "a b/JOB.json")
    assert local.environment["OMP_NUM_THREADS"] == "3"
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in local.environment
    words = shlex.split(local.text())
    assert words[:3] == ["cd", os.getcwd(), "&&"]
    assert words[-4:] == list(local.command)
    assert "OMP_NUM_THREADS=3" in words


def test_torchrun_shares_the_cores_and_gives_the_stage_its_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(9)))
    torchrun = built(launcher="torchrun", processes=4, grace_seconds=90.0)
    assert torchrun.command[1:6] == ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4")
    assert torchrun.environment["OMP_NUM_THREADS"] == "2"
    assert torchrun.environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "90"
    assert torchrun.elsewhere == ()


def test_torchrun_on_several_nodes_says_what_to_start_on_the_others() -> None:
    torchrun = built(launcher="torchrun", gpus=8, nodes=3, rendezvous="node1:29500")
    assert "--nnodes 3 --node_rank 0 --master_addr node1 --master_port 29500" in " ".join(torchrun.command)
    assert [f"--node_rank {number} " in line for number, line in enumerate(torchrun.elsewhere, 1)] == [True, True]
    for line in torchrun.elsewhere:
        assert line.startswith("cd ")
        assert line.endswith("-m stages.worker /attempt/JOB.json\n")


@pytest.mark.parametrize(("visible", "present", "expected"), [("", True, True), ("0", True, False), ("0", False, True)])
def test_deepspeed_is_told_when_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str, present: bool, expected: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: ["/dev/nvidia0"] if present else [])
    assert (built().environment.get("DS_ACCELERATOR") == "cpu") == expected


def test_a_head_node_without_gpus_says_nothing_about_other_nodes(
    monkeypatch: pytest.MonkeyPatch, allocation: Path
) -> None:
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: [])
    assert "DS_ACCELERATOR" not in built(launcher="slurm", gpus=2).environment
    assert built(launcher="slurm", processes=2, device="cpu").environment["DS_ACCELERATOR"] == "cpu"


def test_a_stage_on_the_cpu_sees_no_gpu() -> None:
    assert built(device="cpu").environment["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("variable", "files", "count"),
    [
        (None, 4, 4), ("0,2", 4, 2), ("", 4, 0), ("-1", 4, 0), ("0,-1,1", 4, 1), ("0,1", 0, 0),
        ("MIG-a,MIG-b", 1, 2),
    ],
)  # fmt: skip
def test_gpus_are_counted_as_cuda_counts_them(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, files: int, count: int
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    found = {"/dev/nvidia[0-9]*": [f"/dev/nvidia{number}" for number in range(files)]}
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: found.get(pattern, []))
    assert devices.visible_gpus() == count


def test_what_was_started_is_recorded_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECRET_TOKEN", "SLURM_JWT_TOKEN", "NCCL_PASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    started = launch.Launch(
        (sys.executable, "-c", "import os; print(os.environ['ADDED'])"), {"ADDED": "some value"}, {"more": "text"}
    )
    assert launch.start(started, tmp_path, keep_open=()).wait() == 0
    assert (tmp_path / "log.txt").read_text() == "some value\n"
    assert (tmp_path / "more").read_text() == "text"
    recorded = json.loads((tmp_path / "env.json").read_text())
    assert recorded["environment"] == {"ADDED": "some value"}
    assert recorded["inherited"]["NCCL_DEBUG"] == "WARN"
    assert recorded["versions"]["python"] == sys.version.split()[0]
    assert recorded["host"]
    assert "hunter2" not in "".join(path.read_text() for path in tmp_path.iterdir())
    pasted = subprocess.run(["bash", tmp_path / "cmd.txt"], cwd="/", capture_output=True, text=True, check=True)
    assert pasted.stdout == "some value\n"
