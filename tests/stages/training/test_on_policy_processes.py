"""Several processes write together, whatever ZeRO splits, and train as one process does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import process_world
import pytest
from on_policy_world import TEXTS, make_world, write_documents
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from stages.distill import DistillConfig
from stages.worker import EXIT_INTERRUPTED

STEPS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    return make_world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir)


def launch(world: dict[str, Path], root: Path, processes: int, zero: int, **options) -> process_world.Done:
    """Six windows a step, of which four are rollouts: shares of two processes that the batches of one do not match."""
    options = {
        "losses": [{"alm": {"gamma": 0.0, "temperature": 20.0}}],
        "on_policy": {"fraction": 0.67, "prompt_tokens": [3, 8], "max_new_tokens": 12, "guards": {"on_breach": "warn"}},
        "steps": STEPS, "batch_windows": 6, "window_tokens": 48, "learning_rate": 1e-3, "dtype": "fp32",
        "data_workers": 0, "log_every": 1,
    } | options  # fmt: skip
    resources = {"zero": {"student": zero}, "timeout_minutes": 1}
    return process_world.run(process_world.write_job(root, world, DistillConfig(**options), resources), processes)


def train(world: dict[str, Path], root: Path, processes: int, zero: int, **options) -> Path:
    done = launch(world, root, processes, zero, **options)
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


def test_logits_of_one_process_that_are_not_finite_end_all_of_them_together(world, tmp_path):
    """A token of one document has broken rows, so of the processes that share the parameters one alone meets them."""
    student = tmp_path / "student"
    shutil.copytree(world["student"], student)
    weights = load_file(student / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(student)
    (token,) = set(tokenizer("~").input_ids)
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    documents = tmp_path / "documents"
    documents.mkdir()
    write_documents(documents, [{"text": text} for text in (*TEXTS[:7], "~ and ~ and ~ and ~ and ~")])
    on_policy = {"fraction": 1.0, "prompt_tokens": [3, 8], "max_new_tokens": 12, "batch": 1}
    # Every document is continued once, each by itself.
    options = {"on_policy": on_policy, "batch_windows": 8, "steps": 1, "max_rollbacks": 0}
    done = launch(world | {"student": student, "documents": documents}, tmp_path, 2, 3, **options)
    assert done.codes == (1, 1), done.text
    assert done.text.count("the student's logits are not finite: its weights are damaged") == 2


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


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 3])
def test_a_signal_to_one_process_ends_both_while_they_write(world, tmp_path, zero):
    """Nearly all of the time goes into writing, and one process alone is asked to stop."""
    on_policy = {"fraction": 1.0, "prompt_tokens": [3, 8], "max_new_tokens": 38, "batch": 1}
    options = {"losses": ["policy_gradient"], "on_policy": on_policy | {"guards": {"on_breach": "warn"}}, "steps": 500}
    sizes = {"batch_windows": 16, "window_tokens": 48, "data_workers": 0, "dtype": "fp32", "checkpoint_every": 1}
    resources = {"zero": {"student": zero}, "timeout_minutes": 1}
    job = process_world.write_job(tmp_path, world, DistillConfig(**options, **sizes), resources)
    ranks = process_world.start(job, 2)
    while not (tmp_path / "work" / "ckpt" / "step-1" / "COMPLETE.json").exists():
        assert all(rank.exitcode is None for rank in ranks), process_world.finish(job, ranks).text
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(ranks[1].pid, signal.SIGTERM)
    ended = process_world.finish(job, ranks)
    assert ended.codes == (EXIT_INTERRUPTED, EXIT_INTERRUPTED), ended.text
