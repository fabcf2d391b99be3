"""A recipe's ``resources`` put a stage on two processes under DeepSpeed ZeRO; nothing else about the run changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from e2e_helpers import quickstart_until_distill, stages_that_ran


def _losses(directory: Path) -> list[float]:
    curve = directory / "runs" / "quickstart" / "stages" / "distill" / "out" / "training.jsonl"
    return [json.loads(line)["loss"] for line in curve.read_text(encoding="utf-8").splitlines()]


def test_torchrun_with_zero_gives_the_losses_of_one_process(prepared):
    workplace = prepared
    workplace.keep("models.", "stages.distill.")
    workplace.overrides["stages.distill.dtype"] = "fp32"
    sharded = {"distill": {"launcher": "torchrun", "processes": 2, "threads": 1, "zero": {"student": 2}}}
    code, output = workplace.run("run", quickstart_until_distill(workplace.directory, resources=sharded))
    assert code == 0, output
    two = _losses(workplace.directory)
    (command,) = workplace.directory.glob("runs/store/distill/*/attempts/1/cmd.txt")
    assert "torch.distributed.run --standalone --nproc_per_node 2" in command.read_text(encoding="utf-8")

    one = quickstart_until_distill(workplace.directory)
    code, output = workplace.run("run", one)
    assert code == 0, output
    assert stages_that_ran(output) == set()  # how a stage is launched is no part of its key

    code, output = workplace.run("run", one, "--force", "distill")
    assert code == 0, output
    assert stages_that_ran(output) == {"distill"}
    assert _losses(workplace.directory) == pytest.approx(two, rel=1e-5)
