"""``token_selection`` in the engine: what is learned depends on no micro-batch, packing, adapter, cache or process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import process_world
import pytest
import scored_world
import torch
from safetensors.torch import load_file

from stages.distill import DistillConfig
from stages.stochastok import StochasTok, StochasTokConfig

OPTIONS = {
    "steps": 3, "batch_windows": 4, "window_tokens": 64, "learning_rate": 3e-3, "log_every": 1, "dtype": "fp32",
    "data_workers": 0,
}  # fmt: skip
LOSS = "selected_cross_entropy"


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    texts = [f"{text} {number}." for number in range(3) for text in scored_world.TEXTS]
    documents = scored_world.write_documents(tmp_path_factory.mktemp("world") / "documents", texts)
    return {"student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2), "documents": documents}


def trained(root: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The training curve and the weights of a stage that ran in ``root``."""
    curve = [json.loads(line) for line in (root / "out" / "training.jsonl").read_text().splitlines()]
    return curve, load_file(root / "out" / "model.safetensors")


def stochastok(world: dict[str, Path], root: Path, **options: Any) -> tuple[list[dict[str, float]], dict]:
    config = StochasTokConfig(**OPTIONS | {"token_selection": {}} | options)
    ctx = scored_world.context(root, config, world)
    StochasTok().run(ctx)
    return trained(root)


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory) -> tuple[list[dict[str, float]], dict]:
    return stochastok(world, tmp_path_factory.mktemp("straight"), proportion=0.5)


def assert_same(left: dict, right: dict) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=2e-5)


@pytest.mark.parametrize("options", [{"micro_batch_windows": 1}, {"packing": True}], ids=str)
def test_micro_batches_and_packing_make_no_difference(world, straight, tmp_path, options) -> None:
    curve, weights = stochastok(world, tmp_path, proportion=0.5, **options)
    assert [point[f"{LOSS}.units"] for point in curve] == [point[f"{LOSS}.units"] for point in straight[0]]
    assert_same(weights, straight[1])


def test_everything_kept_of_text_without_splits_is_cross_entropy(world, tmp_path) -> None:
    _, plain = stochastok(world, tmp_path / "plain", proportion=0, token_selection=None)
    curve, kept = stochastok(world, tmp_path / "kept", proportion=0, token_selection={"keep": 1.0})
    assert_same(kept, plain)
    _, selected = stochastok(world, tmp_path / "selected", proportion=0)
    assert max(float((selected[name] - plain[name]).abs().max()) for name in plain) > 1e-3
    assert all(point[f"{LOSS}.token_coverage"] == 1.0 for point in curve)


def test_the_history_is_the_model_that_the_stage_started_from_and_reads_text_without_splits(world, tmp_path) -> None:
    curve, _ = stochastok(world, tmp_path / "plain", proportion=0)
    assert curve[0][f"{LOSS}.improvement"] == pytest.approx(0, abs=1e-6)
    assert curve[-1][f"{LOSS}.improvement"] > 0.01
    assert curve[-1][f"{LOSS}.kept_improvement"] > curve[-1][f"{LOSS}.improvement"]
    curve, _ = stochastok(world, tmp_path / "split", proportion=0.5)
    assert curve[0][f"{LOSS}.improvement"] < -0.1  # to this model the pieces of a token are no word yet
    assert 0.4 < curve[0][f"{LOSS}.token_coverage"] < 0.7


def test_with_an_adapter_one_copy_of_the_weights_is_both_models(world, tmp_path) -> None:
    """A history of its own gives the same: scores of the same model, computed before by ``score``."""
    options = {**OPTIONS, "window_tokens": 128, "adapter": {"rank": 4}}
    live, _ = stochastok(world, tmp_path / "live", proportion=0.5, **options)
    scores = scored_world.score(world["student"], world["documents"], tmp_path / "scores")
    losses, splits = [{LOSS: {}}], {"proportion": 0.5}
    inputs = {**world, "teacher": scores}
    cached, _ = scored_world.distill(tmp_path / "cached", inputs, losses=losses, random_splits=splits, **options)
    assert cached == pytest.approx([point["loss"] for point in live], rel=2e-3)  # cached scores are rounded


@pytest.mark.slow
def test_two_processes_learn_what_one_does(world, tmp_path) -> None:
    config = DistillConfig(
        losses=[{LOSS: {}}], random_splits={"proportion": 0.5}, teacher="self", adapter={"rank": 4},
        micro_batch_windows=1, **OPTIONS,
    )  # fmt: skip
    found = []
    for processes in (1, 2):
        root = tmp_path / str(processes)
        done = process_world.run(process_world.write_job(root, world, config, {"zero": {"student": 1}}), processes)
        assert done.codes == (0,) * processes, done.text
        found.append(trained(root))
    assert [point[f"{LOSS}.units"] for point in found[0][0]] == [point[f"{LOSS}.units"] for point in found[1][0]]
    assert_same(found[0][1], found[1][1])


@pytest.mark.parametrize("keep", [0, 1.01, -0.5])
def test_a_share_outside_its_range_is_refused(keep) -> None:
    with pytest.raises(ValueError, match="keep"):
        StochasTokConfig(steps=1, token_selection={"keep": keep})
