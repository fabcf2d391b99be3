"""``pipeline slurm``: the script that it prints, and what the script does when it is run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.cli import main
from pipeline.errors import RecipeError
from pipeline.job_script import job_script
from pipeline.reading.loading import load_recipe

RECIPE = """\
name: words
stages:
  one: {uses: source-documents, documents: [{path: ./a.txt}]}
  two: {uses: source-documents, documents: [{path: ./a.txt, weight: 2}]}
resources:
  one: {grace_seconds: 300, slurm: {time: 2-0, options: [--qos=long]}}
  two: {launcher: slurm, gpus: 1, threads: 12, slurm: {partition: gpu, account: us, memory: 64G, options: [--qos=long]}}
"""

RUNNER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
print("running", *sys.argv[1:], flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def directives(script: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}


def test_the_script_asks_for_what_the_largest_stage_needs(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", str(recipe), "--set", "stages.one.documents[0].weight=3"]) == 0
    script = capsys.readouterr().out
    assert directives(script) == {
        "--job-name=words", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=12", "--gpus-per-node=1", "--time=2-0",
        "--partition=gpu", "--account=us", "--mem=64G", "--qos=long", "--requeue", "--signal=B:TERM@360",
        "--open-mode=append", "--output=words-%j.log",
    }  # fmt: skip
    assert f"run {recipe} --set 'stages.one.documents[0].weight=3' &" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_job_cannot_be_in_two_partitions(recipe: Path) -> None:
    values = yaml.safe_load(RECIPE)
    values["resources"]["one"]["slurm"]["partition"] = "cpu"
    recipe.write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError, match=r"one job cannot have slurm\.partition cpu and gpu"):
        job_script(load_recipe(recipe), "pipeline run recipe.yaml")


def start(recipe: Path, programs: Path, seconds: float, code: int) -> subprocess.Popen[str]:
    (recipe.parent / "runner.py").write_text(RUNNER)
    script = job_script(load_recipe(recipe), f"{sys.executable} {recipe.parent / 'runner.py'} {seconds} {code}")
    environment = os.environ | {"SLURM_JOB_ID": "4711", "REQUEUED": str(recipe.parent / "requeued")}
    return subprocess.Popen(["bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_run_that_ends_by_itself_is_not_repeated(recipe: Path, cluster: Path, code: int) -> None:
    job = start(recipe, cluster, 0, code)
    job.communicate(timeout=20)
    assert job.returncode == code
    assert not (recipe.parent / "requeued").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preempted_run_is_told_and_put_back_into_the_queue(recipe: Path, cluster: Path, number: int) -> None:
    job = start(recipe, cluster, 60, 0)
    assert job.stdout.readline().startswith("running")
    began = time.monotonic()
    job.send_signal(number)
    job.communicate(timeout=20)
    assert time.monotonic() - began < 15
    assert job.returncode == 75
    assert (recipe.parent / "requeued").read_text() == "4711"
