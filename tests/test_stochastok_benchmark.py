"""``benchmarks/stochastok.py``: the recipe takes what the script sets, and the numbers of the table are right."""

from __future__ import annotations

import importlib
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.reading.loading import load_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("stochastok")


def report(bits: float, right: float, arms: tuple[str, ...]) -> dict:
    """An evaluation in which the control has these numbers, and each arm after it a tenth less."""
    scale = {arm: 1 - 0.1 * number for number, arm in enumerate(arms)}
    models = {arm: {"domains": {"novel": {"bits_per_byte": bits * scale[arm]}}} for arm in arms}
    answers = {f"spelling_{arm}": {"right answer": {"value": right * scale[arm]}} for arm in arms}
    materials = {f"spelling_{arm}": {"held_out_words": {"value": 50.0}} for arm in arms}
    tables = [
        {"title": "Letters and words: all 300 questions", "rows": answers},
        {"title": "Letters and words: accuracy per byte by material", "rows": materials},
    ]
    return {"sections": [{"name": "retention", "data": {"models": models}}, {"name": "cute", "tables": tables}]}


def test_means_intervals_and_differences_by_seed(benchmark):
    assert benchmark.interval([1.0, 2.0, 3.0]) == "2.000 ± 2.484"  # t(0.975, 2) = 4.303, over the root of 3
    assert benchmark.interval([1.5]) == "1.500"
    lines = benchmark.table([report(2.0, 1.0, benchmark.ARMS), report(3.0, 1.0, benchmark.ARMS)]).splitlines()
    assert lines[0] == "| arm | bits per byte, novel | held_out_words % | right answer, bits/byte |"
    assert lines[3].startswith("| stochastok | 2.250 ± ")
    assert lines[4] == "| − control | -0.250 ± 0.635 | 0.000 ± 0.000 | -0.100 ± 0.000 |"


def test_the_recipe_takes_what_is_set_and_its_arms_differ_in_their_splits_alone(benchmark, monkeypatch, tmp_path):
    commands: list[list[str]] = []
    monkeypatch.setattr(benchmark.subprocess, "run", lambda command, **_: commands.append(command))
    with pytest.raises(FileNotFoundError):  # nothing has run, so there is no report
        benchmark.run_seed(1, tmp_path, 30, 40, 0.5)
    (command,) = [each for each in commands if "pipeline" in each]
    settings = [value for flag, value in pairwise(command) if flag == "--set"]
    stages = load_recipe(benchmark.RECIPE, settings).stages
    shown = {name: stage.config.model_dump() for name, stage in stages.items()}
    assert [shown[arm]["proportion"] for arm in benchmark.ARMS] == [0, 0.5, 0.1]
    for arm in benchmark.ARMS:
        assert shown[arm] | {"proportion": 0, "method": "stochastok"} == shown["deterministic"]
        assert shown[f"spelling_{arm}"] == shown["spelling_deterministic"]
        assert stages[arm].inputs["student"] == ("base",)
        tuned = stages[f"spelling_{arm}"].inputs
        assert (tuned["student"], tuned["documents"]) == ((arm,), ("spelling",))
    assert (shown["stochastok"]["steps"], shown["spelling_stochastok"]["steps"]) == (30, 40)
