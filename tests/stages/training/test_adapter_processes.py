"""Two processes train an adapter as one does, whatever ZeRO splits, and whoever teaches."""

from __future__ import annotations

import json
from pathlib import Path

import process_world
import pytest
import torch
from safetensors.torch import load_file

from stages.distill import DistillConfig

STEPS = 3
LOSSES = [{"alm": {"weight": 5.0, "gamma": 0.0, "temperature": 20.0}}, "same_vocabulary", "cross_entropy"]
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
] * 4
SPLIT = {"student": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    documents = tmp_path_factory.mktemp("documents")
    records = [{"id": f"d/{n}", "domain": "d", "weight": 1.0, "text": text} for n, text in enumerate(TEXTS)]
    (documents / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (documents / "manifest.json").write_text("{}")
    return {"student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2), "documents": documents}


def _train(world, root: Path, processes: int, zero: dict, **options) -> Path:
    sizes = {"batch_windows": 4, "micro_batch_windows": 1, "window_tokens": 48, "data_workers": 0, "log_every": 1}
    config = DistillConfig(
        losses=LOSSES, steps=STEPS, learning_rate=3e-3, dtype="fp32", checkpoint_every=1, teacher="self",
        **sizes, **options,
    )  # fmt: skip
    resources = {"zero": zero}
    if zero["student"] == 3:  # by default it leaves parameters as small as these whole
        resources["deepspeed"] = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    done = process_world.run(process_world.write_job(root, world, config, resources), processes)
    assert done.codes == (0,) * processes, done.text
    return root


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """What one plain process makes of some options; each asked for once."""
    made: dict[str, Path] = {}

    def train(**options) -> Path:
        key = json.dumps(options)
        if key not in made:
            made[key] = _train(world, tmp_path_factory.mktemp("alone"), 1, {"student": 0}, **options)
        return made[key]

    return train


def _curve(root: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (root / "out" / "training.jsonl").read_text().splitlines()]


TRAINED = {"adapter": {"rank": 4}}
FROZEN = {"adapter": {"rank": 4, "embeddings": "freeze"}}
DORA = {"adapter": {"method": "dora", "rank": 4}}


@pytest.mark.parametrize(
    ("zero", "options"),
    [
        pytest.param(SPLIT, DORA, id="zero 3, offloaded, dora"),
        pytest.param({"student": 0}, TRAINED, id="zero 0", marks=pytest.mark.slow),
        pytest.param({"student": 1}, TRAINED, id="zero 1", marks=pytest.mark.slow),
        pytest.param({"student": 2}, TRAINED, id="zero 2", marks=pytest.mark.slow),
        pytest.param({"student": 3}, TRAINED, id="zero 3", marks=pytest.mark.slow),
        pytest.param({"student": 3}, DORA, id="zero 3, dora", marks=pytest.mark.slow),
        pytest.param({"student": 3}, FROZEN, id="zero 3, frozen embeddings", marks=pytest.mark.slow),
        pytest.param({"student": 3}, {"trainable": "embeddings"}, id="zero 3, no adapter", marks=pytest.mark.slow),
        pytest.param(
            {"student": 3}, TRAINED | {"activation_checkpointing": True}, id="zero 3, again", marks=pytest.mark.slow
        ),
    ],
)
def test_two_processes_train_an_adapter_as_one_does(world, alone, tmp_path, zero, options):
    reference = {name: value for name, value in options.items() if name != "activation_checkpointing"}
    ours, theirs = _train(world, tmp_path, 2, zero, **options), alone(**reference)
    for name in ("loss", "alm", "same_vocabulary", "gradient_norm"):
        assert _curve(ours, name) == pytest.approx(_curve(theirs, name), rel=1e-4, abs=1e-7), name
    assert _curve(ours, "same_vocabulary")[-1] > 1e-6  # the student has left what it was, which still teaches
    merged, expected = (load_file(root / "out" / "model.safetensors") for root in (ours, theirs))
    assert merged.keys() == expected.keys() == load_file(world["student"] / "model.safetensors").keys()
    for name in expected:
        torch.testing.assert_close(merged[name], expected[name], atol=5e-5, rtol=1e-3)
