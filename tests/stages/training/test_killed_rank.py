"""One of two training processes is killed, or hangs: the other ends too, and the next attempt goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import process_world
import pytest
import torch
from safetensors.torch import load_file

from stages.distill import DistillConfig
from stages.worker import EXIT_INTERRUPTED

STEPS = 12
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
] * 6


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    documents = tmp_path_factory.mktemp("documents")
    records = [{"id": f"d/{n}", "domain": "d", "weight": 1.0, "text": text} for n, text in enumerate(TEXTS)]
    (documents / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (documents / "manifest.json").write_text("{}")
    teacher, student = tiny_tokenizer_dirs
    return {
        "teacher": tiny_model_dir(teacher, seed=1),
        "student": tiny_model_dir(student, seed=2),
        "documents": documents,
    }


def _job(world, root: Path, zero: int, **resources) -> Path:
    options = {"losses": ["alm"], "steps": STEPS, "learning_rate": 1e-3, "dtype": "fp32", "data_workers": 0}
    sizes = {"batch_windows": 4, "window_tokens": 48, "checkpoint_every": 2, "log_every": 1}
    config = DistillConfig(**options, **sizes)
    return process_world.write_job(root, world, config, {"zero": {"student": zero}, **resources})


def _wait_for_checkpoint(root: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not (root / "work" / "ckpt" / f"step-{step}" / "COMPLETE.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("zero", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_survivor_ends_and_the_next_attempt_trains_to_the_same_parameters(world, tmp_path, zero):
    straight = process_world.run(_job(world, tmp_path / "straight", zero), 2)
    assert straight.codes == (0, 0), straight.text

    job = _job(world, tmp_path / "killed", zero)
    ranks = process_world.start(job, 2)
    _wait_for_checkpoint(tmp_path / "killed", 4)
    time.sleep(random.uniform(0, 0.2))
    victim = random.choice((0, 1))
    ranks[victim].kill()
    ended = process_world.finish(job, ranks)
    assert ended.codes[victim] == -signal.SIGKILL
    assert ended.codes[1 - victim] not in (0, EXIT_INTERRUPTED), ended.text
    assert not (tmp_path / "killed" / "out" / "model.safetensors").exists()

    (tmp_path / "killed" / "attempt" / "outcome.json").unlink()
    resumed = process_world.run(job, 2)
    assert resumed.codes == (0, 0), resumed.text
    assert "resuming after step" in resumed.text
    expected, trained = (load_file(tmp_path / root / "out" / "model.safetensors") for root in ("straight", "killed"))
    assert expected.keys() == trained.keys()
    for name in expected:
        torch.testing.assert_close(trained[name], expected[name], atol=1e-6, rtol=0)


def test_a_stage_that_fails_once_its_processes_have_met_leaves_their_group(world, tmp_path):
    (tmp_path / "documents").mkdir()
    record = {"id": "d/0", "domain": "d", "weight": 1.0, "text": "Too short."}
    (tmp_path / "documents" / "documents.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "documents" / "manifest.json").write_text("{}")
    ended = process_world.run(_job(world | {"documents": tmp_path / "documents"}, tmp_path, 2), 2)
    assert ended.codes == (1, 1), ended.text
    assert ended.text.count("one batch needs") == 2
    assert ended.text.count("in a group: False") == 2


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others_in_bounded_time(world, tmp_path):
    job = _job(world, tmp_path, 2, timeout_minutes=1)
    ranks = process_world.start(job, 2)
    _wait_for_checkpoint(tmp_path, 2)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    began = time.monotonic()
    ranks[0].join(180)
    assert 50 < time.monotonic() - began < 180
    ranks[1].kill()
    assert process_world.finish(job, ranks).codes == (1, -signal.SIGKILL)
    outcome = json.loads((tmp_path / "attempt" / "outcome.json").read_text())
    assert "Timed out waiting" in outcome["message"]
    assert outcome["rank"] == 0
