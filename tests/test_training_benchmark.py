"""``benchmarks/training.py`` runs, from models to table, so that it does when a GPU is there to run it on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "training.py"


@pytest.fixture
def benchmark(monkeypatch):
    from stages.training.monitoring.timeline import Timeline

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(Timeline, "clock", Timeline.clock)
    spec = importlib.util.spec_from_file_location("benchmarks_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmarks_training", module)
    spec.loader.exec_module(module)
    return module


def test_every_case_of_one_process_is_measured(benchmark, tmp_path, capsys):
    benchmark.main(["--check", "--device-tflops", "1", "--output", str(tmp_path / "found.json")])
    cases = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert list(cases) == [name for name, case in benchmark.CASES.items() if case.processes == 1]
    assert all(
        values["step"] > 0 and values["tokens_per_second"] > 0 and values["mfu"] > 0 for values in cases.values()
    )
    # A control arm has no teacher, and a cached one no teacher's forward pass.
    assert cases["cross-entropy"]["teacher_tokens_per_second"] == 0
    assert cases["ALM"]["teacher_tokens_per_second"] > 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len({row.count("|") for row in rows}) == 1
    assert len(rows) == 1 + len(cases)
