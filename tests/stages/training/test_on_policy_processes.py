"""Several processes write together, whatever ZeRO splits, and train as one process does."""

from __future__ import annotations

import json
from pathlib import Path

import process_world
import pytest
from on_policy_world import make_world

from stages.distill import DistillConfig

STEPS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    return make_world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir)


def train(world: dict[str, Path], root: Path, processes: int, zero: int, **options) -> Path:
    """Six windows a step, of which four are rollouts: shares of two processes that the batches of one do not match."""
    options = {
        "losses": [{"alm": {"gamma": 0.0, "temperature": 20.0}}],
        "on_policy": {"fraction": 0.67, "prompt_tokens": [3, 8], "max_new_tokens": 12, "guards": {"on_breach": "warn"}},
        "steps": STEPS, "batch_windows": 6, "window_tokens": 48, "learning_rate": 1e-3, "dtype": "fp32",
        "data_workers": 0, "log_every": 1,
    } | options  # fmt: skip
    job = process_world.write_job(root, world, DistillConfig(**options), {"zero": {"student": zero}})
    done = process_world.run(job, processes)
    assert done.codes == (0,) * processes, done.text
    return root


def lines(root: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (root / "out" / name).read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> Path:
    return train(world, tmp_path_factory.mktemp("alone"), 1, 0)


@pytest.mark.parametrize("zero", [3, pytest.param(0, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_write_and_learn_what_one_does(world, alone, tmp_path, zero):
    root = train(world, tmp_path, 2, zero)
    assert lines(root, "rollouts.jsonl") == lines(alone, "rollouts.jsonl")
    for ours, theirs in zip(lines(root, "training.jsonl"), lines(alone, "training.jsonl"), strict=True):
        for name in ("loss", "gradient_norm", "alm.units", "rollouts.length_median", "rollouts.end_mass"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


@pytest.mark.slow
def test_more_processes_than_rollouts_still_write_together(world, tmp_path):
    """One rollout a step: the second process has none of its own, and holds half of the parameters."""
    options = {"batch_windows": 4, "on_policy": {"fraction": 0.25, "prompt_tokens": [3, 8], "max_new_tokens": 12}}
    one, two = (train(world, tmp_path / str(n), n, zero, steps=2, **options) for n, zero in ((1, 0), (2, 3)))
    assert lines(two, "rollouts.jsonl") == lines(one, "rollouts.jsonl")


@pytest.mark.slow
def test_an_averaged_teacher_is_the_same_in_every_process(world, tmp_path):
    text = {name: path for name, path in world.items() if name != "teacher"}
    options = {"teacher": "ema", "ema_decay": 0.5, "losses": ["cross_entropy", {"alm": {"gamma": 0.0}}]}
    one, two = (train(text, tmp_path / str(n), n, zero, **options) for n, zero in ((1, 0), (2, 2)))
    for ours, theirs in zip(lines(two, "training.jsonl"), lines(one, "training.jsonl"), strict=True):
        assert ours["alm"] == pytest.approx(theirs["alm"], rel=1e-3, abs=1e-7)
