"""SIGKILL to whatever takes part in a training on two processes, at any moment: the same command goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from e2e_helpers import QUICKSTART, REPOSITORY, Workplace
from safetensors.torch import load_file

STEPS = 16
RESOURCES = {"launcher": "torchrun", "processes": 2, "threads": 1, "grace_seconds": 60, "zero": {"student": 2}}


class Training:
    """A run of the quickstart up to ``distill``, on two processes, in a directory of its own."""

    def __init__(self, place: Workplace) -> None:
        self.place = place
        recipe = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
        recipe["stages"] = {name: recipe["stages"][name] for name in ("align", "init", "distill")}
        del recipe["data"]["eval"]
        for documents in recipe["data"]["train"]:
            documents["path"] = str(REPOSITORY / "recipes" / documents["path"])
        recipe["resources"] = {"distill": RESOURCES}
        self.recipe = place.directory / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        kept = ("models.", "stages.distill.")
        place.overrides = {name: value for name, value in place.overrides.items() if name.startswith(kept)}
        place.overrides |= {"stages.distill.steps": STEPS, "stages.distill.dtype": "fp32"}

    def start(self) -> subprocess.Popen[str]:
        return self.place.start(self.place.arguments("run", self.recipe))

    def run(self) -> tuple[int, str]:
        return self.place.run("run", self.recipe)

    @property
    def entry(self) -> Path:
        (entry,) = self.place.directory.glob("runs/store/distill/*")
        return entry

    def ranks(self) -> list[int]:
        records = [json.loads(path.read_text()) for path in sorted(self.entry.glob("attempts/1/ranks/*.json"))]
        return [record["pid"] for record in records]

    def launcher(self) -> int:
        return json.loads((self.entry / "attempts" / "1" / "status.json").read_text())["pid"]

    def alive(self) -> list[int]:
        """Processes of the first attempt that are left, on whatever they are at."""
        job = str(self.entry / "attempts" / "1" / "JOB.json")
        return [each.pid for each in psutil.process_iter(["cmdline"]) if job in (each.info["cmdline"] or ())]

    def checkpoints(self, holding: str = "") -> list[int]:
        """The steps of all checkpoints that were begun, or of those that hold a file, in order."""
        found = self.place.directory.glob("runs/store/distill/*/work/ckpt/step-*")
        return sorted(int(path.name.removeprefix("step-")) for path in found if (path / holding).exists())

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.place.directory / "runs/quickstart/stages/distill/out/model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_overrides: dict) -> Training:
    training = Training(Workplace(tmp_path_factory.mktemp("uninterrupted"), dict(tiny_overrides)))
    code, output = training.run()
    assert code == 0, output
    return training


@pytest.fixture
def training(uninterrupted: Training, tmp_path: Path, tiny_overrides: dict) -> Iterator[Training]:
    """The same with everything before ``distill`` done."""
    shutil.copytree(uninterrupted.place.directory / "runs", tmp_path / "runs", symlinks=True)
    shutil.rmtree(tmp_path / "runs" / "store" / "distill")
    made = Training(Workplace(tmp_path, dict(tiny_overrides)))
    yield made
    for pid in made.alive():
        os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], pause: float) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(pause)


def _in_the_middle(moment: str, training: Training, process: subprocess.Popen[str]) -> None:
    """Return at a random moment of a step, or of the writing of a checkpoint."""
    number = random.randint(2, 5)
    if moment == "step":
        wait_until(lambda: len(training.checkpoints("COMPLETE.json")) >= 2, process, 0.01)
        time.sleep(random.uniform(0, 0.3))
        return

    def writing() -> bool:
        begun = training.checkpoints()
        return len(begun) >= 2 and begun[-1] >= 2 * number

    wait_until(writing, process, 0.0005)


def _victims(what: str, training: Training, process: subprocess.Popen[str]) -> list[int]:
    ranks = training.ranks()
    return {
        "a rank": [random.choice(ranks)],
        "all ranks": ranks,
        "the launcher": [training.launcher()],
        "the runner": [process.pid],
        "everything": [process.pid, training.launcher(), *ranks],
    }[what]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["step", "checkpoint"])
@pytest.mark.parametrize("what", ["a rank", "all ranks", "the launcher", "the runner", "everything"])
def test_the_next_run_continues_to_the_same_parameters(
    uninterrupted: Training, training: Training, what: str, moment: str
) -> None:
    process = training.start()
    _in_the_middle(moment, training, process)
    for pid in _victims(what, training, process):
        os.kill(pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == {"the runner": -9, "everything": -9}.get(what, 1), output
    if what == "a rank":
        assert "was killed by signal 9, SIGKILL" in output
        assert "/ranks/" in output or "log.txt" in output
    if what == "the runner":
        deadline = time.monotonic() + 60
        while training.alive() and time.monotonic() < deadline:
            time.sleep(0.1)  # it could not ask: the ranks notice, and save
    if what != "everything":
        assert training.alive() == [], "nobody trains on unseen"

    code, output = training.run()
    assert code == 0, output
    assert "going on from step" in output
    assert training.alive() == []
    expected, resumed = uninterrupted.weights(), training.weights()
    assert expected.keys() == resumed.keys()
    for name in expected:
        torch.testing.assert_close(resumed[name], expected[name], atol=1e-6, rtol=0)
