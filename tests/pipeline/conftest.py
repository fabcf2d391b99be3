"""Runs of a toy stage on several ranks, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_cluster
import psutil
import pytest
import toys

from pipeline.store import Store


class RankRun:
    """A run of one ``count`` stage under a launcher, up to when both ranks have begun and one has saved."""

    def __init__(self, runs: Path, resources: dict[str, object], **config: object) -> None:
        self.local_command = [sys.executable, toys.__file__, str(runs), json.dumps(config)]
        self.command = [*self.local_command, json.dumps({"processes": 2, **resources})]
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        store = Store(runs / "store")
        self.entry = store.entry("count", toys.planned(store, "count", "count", config).key)
        wait_until(lambda: self._has_begun() or self.process.poll() is not None)

    def _has_begun(self) -> bool:
        both = len(list(self.entry.path.glob("attempts/*/ranks/*.json"))) == 2
        return both and self.entry.resume_point() is not None

    @property
    def attempt(self) -> Path:
        return self.entry.last_attempt().path

    def workers(self) -> list[psutil.Process]:
        """The launcher's processes and the ranks."""
        job = str(self.attempt.resolve() / "JOB.json")
        return [process for process in psutil.process_iter(["cmdline"]) if job in (process.info["cmdline"] or ())]

    def rank(self, number: int) -> psutil.Process:
        return psutil.Process(json.loads((self.attempt / "ranks" / f"{number}.json").read_text())["pid"])

    def finish(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def rank_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RankRun]]:
    monkeypatch.setenv("PYTHONPATH", str(Path(toys.__file__).parent))
    made: list[RankRun] = []

    def make(resources: dict[str, object], **config: object) -> RankRun:
        made.append(RankRun(tmp_path, resources, **config))
        return made[-1]

    yield make
    for run in made:
        for process in [run.process, *(run.workers() if run.entry.attempts() else ())]:
            process.kill()
        run.process.communicate()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-ins of ``fake_cluster`` on PATH; returns their directory."""
    programs = fake_cluster.install(tmp_path / "programs")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return programs


@pytest.fixture
def allocation(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The inside of a SLURM job on two nodes, which are both this machine; returns the stand-ins' directory."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "localhost,127.0.0.1")
    # As a job script sees them: it is no task of any step.
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    return cluster
