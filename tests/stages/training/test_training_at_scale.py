"""Through the engine: neither blocks, workers nor processes change what is learned, and a run goes on across blocks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import process_world
import pytest
import torch
from safetensors.torch import load_file

from stages.distill import Distill, DistillConfig
from stages.document_source import DocumentsSource
from stages.stage import StageContext, StageError, StageInterrupted
from stages.stochastok import StochasTok, StochasTokConfig

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159.",
]
OPTIONS = {
    "losses": [{"alm": {"gamma": 0.0, "temperature": 20.0}}, {"cross_entropy": {}}],
    "steps": 6,
    "batch_windows": 4,
    "window_tokens": 40,
    "learning_rate": 3e-3,
    "dtype": "fp32",
    "shuffle_documents": 5,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    """A teacher, a student with another tokenizer, and documents of a copied and a streamed set."""
    root = tmp_path_factory.mktemp("documents")
    for name, prompt in (("copied", ""), ("streamed", "The dog is asked: ")):
        lines = [{"text": f"{text} {number}.", "prompt": prompt} for number in range(4) for text in SENTENCES]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("out", "work"):
        (root / name).mkdir()
    sets = [
        {"path": str(root / "copied.jsonl")},
        {
            "path": str(root / "streamed.jsonl"),
            "stream": True,
            "prompt": "prompt",
            "weight": 0.5,
            "sample_documents": 1,
        },
    ]
    DocumentsSource().run(StageContext(DocumentsSource.Config(documents=sets), {}, root / "work", root / "out"))
    return {
        "teacher": tiny_model_dir(tiny_tokenizer_dirs[0], seed=1),
        "student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2),
        "documents": root / "out",
    }


def _context(world: dict[str, Path], root: Path, config: Any, **options: Any) -> StageContext:
    for name in ("work", "out"):
        (root / name).mkdir(parents=True, exist_ok=True)
    inputs = {name: {name: path} for name, path in world.items()}
    return StageContext(config, inputs, root / "work", root / "out", **options)


def _distill(world: dict[str, Path], root: Path, stop_after: int | None = None, **options: Any) -> dict:
    polls = iter(range(1_000_000))
    stop = (lambda: False) if stop_after is None else (lambda: next(polls) >= stop_after)
    Distill().run(_context(world, root, DistillConfig(**OPTIONS | options), should_stop=stop))
    return load_file(root / "out" / "model.safetensors")


def _account(root: Path) -> dict:
    return json.loads((root / "out" / "training_data.json").read_text())


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    root = tmp_path_factory.mktemp("straight")
    return root, _distill(world, root, data_workers=0)


@pytest.mark.parametrize(("workers", "then"), [(1, 0), (0, 2)])
def test_a_run_goes_on_exactly_in_the_middle_of_an_epoch_and_a_block(world, straight, tmp_path, workers, then):
    root, expected = straight
    with pytest.raises(StageInterrupted):
        _distill(world, tmp_path, stop_after=3, data_workers=workers)
    resumed = _distill(world, tmp_path, data_workers=then)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())
    assert _account(tmp_path) == _account(root)


def test_what_was_drawn_is_told_by_domain(straight):
    account = _account(straight[0])
    drawn = account["drawn"]
    assert sum(domain["windows"] for domain in drawn.values()) == 6 * 4
    assert drawn["copied"]["windows"] > drawn["streamed"]["windows"] > 0
    assert account["documents"] <= 24
    assert 0 < account["aligned_bytes"] <= account["bytes"]


@pytest.mark.slow
def test_two_processes_share_the_work_and_learn_the_same(world, straight, tmp_path):
    root, _ = straight
    job = process_world.write_job(tmp_path, world, DistillConfig(**OPTIONS, data_workers=1), {"zero": {"student": 2}})
    done = process_world.run(job, 2)
    assert done.codes == (0, 0), done.text
    curves = [
        [json.loads(line)["loss"] for line in (each / "out" / "training.jsonl").read_text().splitlines()]
        for each in (root, tmp_path)
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert _account(tmp_path) == _account(root)


def test_too_little_text_is_found_before_a_model_is_loaded(world, tmp_path):
    shutil.copytree(world["student"], tmp_path / "student", ignore=shutil.ignore_patterns("*.safetensors"))
    without_models = world | {"student": tmp_path / "student"}
    with pytest.raises(StageError, match=r"makes only \d+ windows, but one batch needs 1000"):
        StochasTok().run(
            _context(without_models, tmp_path, StochasTokConfig(steps=1, batch_windows=1000, window_tokens=40))
        )


def test_random_splits_are_the_same_in_a_worker(world, tmp_path):
    config = {"steps": 4, "batch_windows": 4, "window_tokens": 40, "dtype": "fp32", "proportion": 0.5}
    trained = []
    for workers in (0, 1):
        ctx = _context(
            world, tmp_path / str(workers), StochasTokConfig(**config, shuffle_documents=5, data_workers=workers)
        )
        StochasTok().run(ctx)
        trained.append(load_file(ctx.out / "model.safetensors"))
    assert all(torch.equal(trained[1][name], tensor) for name, tensor in trained[0].items())
    assert _account(tmp_path / "1")["drawn"].keys() == {"copied", "streamed"}
