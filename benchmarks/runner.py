"""How long the command line takes where there is much: ``python benchmarks/runner.py``.

A recipe of 200 stages, and a store with 1,000 runs of 10 stages each, of which half are shared, all made by hand as
the runner leaves them. Prints a Markdown table: wall-clock and processor time of whole commands, Python's start and
imports included, the best of ``--repeat``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.planner import make_plan  # noqa: E402
from pipeline.reading.loading import load_recipe  # noqa: E402
from pipeline.store import Entry, Store  # noqa: E402
from pipeline.views import overview  # noqa: E402

STAGES = 200
RUNS = 1_000
STAGES_OF_A_RUN = 10
SHARED = 5


class Times(NamedTuple):
    """Of one command, in seconds."""

    wall: float
    processor: float


def wide_recipe(folder: Path) -> Path:
    """A recipe of ``STAGES`` stages, every one after another that only reads files, so that none must be run."""
    (folder / "text.jsonl").write_text(json.dumps({"text": "x"}) + "\n", encoding="utf-8")
    stages = {
        f"documents{index}": {"uses": "source-documents", "documents": [{"path": "text.jsonl", "name": f"set{index}"}]}
        for index in range(STAGES)
    }
    path = folder / "wide.yaml"
    path.write_text(yaml.safe_dump({"name": "wide", "stages": stages}, sort_keys=False), encoding="utf-8")
    return path


def fill(folder: Path) -> Path:
    """``RUNS`` runs as the runner leaves them; returns the directory of all."""
    runs = folder / "runs"
    store = Store(runs / "store")
    for number in range(RUNS):
        directory = runs / f"run-{number:04d}"
        (directory / "stages").mkdir(parents=True)
        places = {}
        for index in range(STAGES_OF_A_RUN):
            told = f"shared {index}" if index < SHARED else f"{number} {index}"
            key = hashlib.sha256(told.encode()).hexdigest()
            entry = store.entry("distill", key)
            places[f"stage{index}"] = str(entry.path.relative_to(store.root))
            if not entry.path.exists() and (number + index) % 50:  # some are still to be made
                make(entry)
        (directory / "recipe.resolved.yaml").write_text("name: none\n", encoding="utf-8")
        (directory / overview.KEPT).write_text(json.dumps(places), encoding="utf-8")
        (directory / "events.jsonl").write_text("{}\n", encoding="utf-8")
        (directory / "run.lock").touch()
    return runs


def make(entry: Entry) -> None:
    """As much of a result as is looked at when many runs are shown."""
    (entry.path / "attempts" / "1").mkdir(parents=True)
    entry.done_path.write_text("{}", encoding="utf-8")


def measure(arguments: list[str], folder: Path, repeat: int) -> Times:
    """The best of ``repeat`` times of a command."""
    best = Times(float("inf"), float("inf"))
    for _ in range(repeat):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=folder, check=True, capture_output=True,
                       env={"PYTHONPATH": str(ROOT), "PATH": ""})  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        best = Times(min(best.wall, time.perf_counter() - started), min(best.processor, processor))
    return best


def main() -> None:
    """Fill a temporary directory, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = fill(folder)
        wide = wide_recipe(folder)
        assert len(make_plan(load_recipe(wide), runs).stages) == STAGES
        commands = {
            "`pipeline --help`": ["--help"],
            f"`pipeline status`, {RUNS:,} runs of {STAGES_OF_A_RUN} stages": ["status"],
            f"`pipeline ls runs`, {RUNS:,} runs": ["ls", "runs"],
            f"`pipeline status wide.yaml`, {STAGES} stages": ["status", str(wide)],
            f"`pipeline plan wide.yaml`, {STAGES} stages": ["plan", str(wide)],
            f"`pipeline validate wide.yaml`, {STAGES} stages": ["validate", str(wide)],
        }
        print("| command | wall s | processor s |\n|---|---|---|")
        for said, arguments in commands.items():
            times = measure(arguments, folder, repeat)
            print(f"| {said} | {times.wall:.2f} | {times.processor:.2f} |")


if __name__ == "__main__":
    main()
