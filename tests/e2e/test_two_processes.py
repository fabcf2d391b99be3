"""A recipe's ``resources`` put a stage on two processes under DeepSpeed ZeRO; nothing else about the run changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from e2e_helpers import QUICKSTART, REPOSITORY, stages_that_ran


def _recipe(directory: Path, resources: dict) -> Path:
    """The quickstart up to ``distill``, in float32, with ``resources``."""
    document = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    document["stages"] = {name: document["stages"][name] for name in ("align", "init", "distill")}
    document["stages"]["distill"]["dtype"] = "fp32"
    del document["data"]["eval"]
    for documents in document["data"]["train"]:
        documents["path"] = str(REPOSITORY / "recipes" / documents["path"])
    document["resources"] = resources
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def _losses(directory: Path) -> list[float]:
    curve = directory / "runs" / "quickstart" / "stages" / "distill" / "out" / "training.jsonl"
    return [json.loads(line)["loss"] for line in curve.read_text(encoding="utf-8").splitlines()]


def test_torchrun_with_zero_gives_the_losses_of_one_process(workplace):
    kept = ("models.", "stages.distill.")
    workplace.overrides = {name: value for name, value in workplace.overrides.items() if name.startswith(kept)}
    sharded = {"distill": {"launcher": "torchrun", "processes": 2, "threads": 1, "zero": {"student": 2}}}
    code, output = workplace.run("run", _recipe(workplace.directory, sharded))
    assert code == 0, output
    two = _losses(workplace.directory)
    (command,) = workplace.directory.glob("runs/store/distill/*/attempts/1/cmd.txt")
    assert "torch.distributed.run --standalone --nproc_per_node 2" in command.read_text(encoding="utf-8")

    one = _recipe(workplace.directory, {})
    code, output = workplace.run("run", one)
    assert code == 0, output
    assert stages_that_ran(output) == set()  # how a stage is launched is no part of its key

    code, output = workplace.run("run", one, "--force", "distill")
    assert code == 0, output
    assert stages_that_ran(output) == {"distill"}
    assert _losses(workplace.directory) == pytest.approx(two, rel=1e-5)
