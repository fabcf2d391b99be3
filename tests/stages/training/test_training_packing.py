"""Packed rows and budgets of tokens through the engine: the same steps as padded ones, faster or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from process_world import run, write_job
from safetensors.torch import load_file

from stages.distill import Distill, DistillConfig
from stages.stage import StageContext, StageError, StageInterrupted
from stages.stochastok import StochasTok, StochasTokConfig

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "Yes.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159.",
    "Who is there? It is I.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
] * 3
LOSSES = [
    {"alm": {"weight": 5.0, "gamma": 0.0, "temperature": 20.0}},
    {"cross_entropy": {}},
    {"hidden_states": {"layers": [1, -1]}},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    """A teacher, a student with another tokenizer, and documents of different lengths."""
    documents = tmp_path_factory.mktemp("documents")
    records = [{"id": f"d/{n}", "domain": "d", "weight": 1.0, "text": text} for n, text in enumerate(TEXTS)]
    (documents / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (documents / "manifest.json").write_text("{}")
    return {
        "teacher": tiny_model_dir(tiny_tokenizer_dirs[0], seed=1),
        "student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2),
        "documents": documents,
    }


class StopAfter:
    """Asks the stage to stop once it was polled ``polls`` times."""

    def __init__(self, polls: int) -> None:
        self.left = polls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def context(world: dict[str, Path], root: Path, config, **options) -> StageContext:
    work, out = root / "work", root / "out"
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(exist_ok=True)
    return StageContext(config=config, inputs={k: {k: v} for k, v in world.items()}, work=work, out=out, **options)


def configured(**options) -> DistillConfig:
    """A short training in float32, every step of it logged."""
    defaults = {"losses": LOSSES, "steps": 5, "window_tokens": 48, "learning_rate": 1e-3, "dtype": "fp32"}
    return DistillConfig(**defaults | {"log_every": 1, "data_workers": 0} | options)


def distill(world: dict[str, Path], root: Path, *, ctx: dict | None = None, **options) -> dict[str, torch.Tensor]:
    Distill().run(context(world, root, configured(**options), **ctx or {}))
    return load_file(root / "out" / "model.safetensors")


def curve(root: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (root / "out" / "training.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def padded(world, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    root = tmp_path_factory.mktemp("padded")
    return root, distill(world, root, batch_windows=8)


def assert_the_same(root: Path, weights: dict[str, torch.Tensor], expected: tuple[Path, dict]) -> None:
    for name in ("loss", "alm", "cross_entropy", "hidden_states", "alm.units", "gradient_norm"):
        assert curve(root, name) == pytest.approx(curve(expected[0], name), rel=1e-5), name
    for name, tensor in expected[1].items():
        torch.testing.assert_close(weights[name], tensor, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("options", [{}, {"micro_batch_windows": 2}, {"attention": "eager"}], ids=str)
def test_packing_changes_nothing_but_the_layout(world, padded, tmp_path, options):
    assert_the_same(tmp_path, distill(world, tmp_path, batch_windows=8, packing=True, **options), padded)


def test_several_objectives_at_once_do_not_see_how_windows_are_laid_out(world, tmp_path):
    losses = ["dpca", {"uld": {"positions": "paired"}}, {"dskd": {"alignment": "cma", "projectors": "random"}}, "bpm"]
    for name, packing in (("padded", False), ("packed", True)):
        distill(world, tmp_path / name, losses=losses, batch_windows=8, steps=3, packing=packing)
    for measure in ("loss", "dpca", "uld", "dskd", "bpm", "dskd.gradient_norm"):
        packed, padded = (curve(tmp_path / name, measure) for name in ("packed", "padded"))
        assert packed == pytest.approx(padded, rel=1e-5), measure


def test_stochastok_packs_its_windows_too(world, tmp_path):
    found = []
    for name, packing in (("padded", False), ("packed", True)):
        config = StochasTokConfig(
            steps=3, batch_windows=8, window_tokens=48, packing=packing, log_every=1, dtype="fp32", data_workers=0
        )
        StochasTok().run(context(world, tmp_path / name, config))
        found.append(curve(tmp_path / name, "loss"))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_budget_of_tokens_is_the_same_batch_in_any_layout(world, tmp_path):
    layouts = {"whole": {}, "split": {"micro_batch_windows": 3}, "packed": {"micro_batch_windows": 1, "packing": True}}
    weights = {name: distill(world, tmp_path / name, batch_tokens=150, **options) for name, options in layouts.items()}
    for name in ("split", "packed"):
        assert_the_same(tmp_path / name, weights[name], (tmp_path / "whole", weights["whole"]))


@pytest.mark.parametrize(
    "zero",
    [{"student": 2}, *(pytest.param(each, marks=pytest.mark.slow) for each in ({}, {"student": 1}, {"student": 3}))],
    ids=str,
)
def test_two_processes_share_a_budget_of_tokens_as_one_spends_it(world, tmp_path, zero):
    """Rows do not divide over the processes, steps differ in forward passes, and some passes hold nothing to learn."""
    options = {"batch_tokens": 110, "packing": True, "micro_batch_windows": 1, "steps": 4}
    weights = distill(world, tmp_path / "one", **options)
    teacher = {"teacher": 3} if zero.get("student") == 3 else {}
    job = write_job(tmp_path / "two", world, configured(**options), {"zero": zero | teacher})
    done = run(job, processes=2)
    assert done.codes == (0, 0), done.text
    sharded = load_file(tmp_path / "two" / "out" / "model.safetensors")
    for name in ("loss", "alm", "cross_entropy", "hidden_states", "alm.units", "gradient_norm"):
        assert curve(tmp_path / "two", name) == pytest.approx(curve(tmp_path / "one", name), rel=1e-5, abs=1e-7), name
    for name, tensor in weights.items():
        torch.testing.assert_close(sharded[name], tensor, atol=5e-5, rtol=1e-3, msg=name)


def test_an_interrupted_run_of_packed_budgets_ends_bitwise_like_an_uninterrupted_one(world, tmp_path):
    options = {"batch_tokens": 150, "packing": True, "micro_batch_windows": 2, "losses": LOSSES[:2], "steps": 6}
    expected = distill(world, tmp_path / "straight", **options)
    with pytest.raises(StageInterrupted):
        distill(world, tmp_path / "resumed", ctx={"should_stop": StopAfter(3)}, **options)
    resumed = distill(world, tmp_path / "resumed", **options)
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name
    assert curve(tmp_path / "resumed", "loss") == curve(tmp_path / "straight", "loss")


def test_a_model_that_mixes_windows_is_refused_before_training(world, tmp_path):
    from transformers import AutoTokenizer, Mamba2Config, Mamba2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(world["student"])
    config = Mamba2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=4,
        head_dim=16,
        n_groups=1,
    )
    for part in (Mamba2ForCausalLM(config), tokenizer):
        part.save_pretrained(tmp_path / "mamba")
    for side in ("student", "teacher"):
        root = tmp_path / side
        with pytest.raises(StageError, match=rf"the {side} \(Mamba2ForCausalLM\) .*; set packing: false"):
            distill(world | {side: tmp_path / "mamba"}, root, batch_windows=4, packing=True, losses=[LOSSES[0]])
        assert not (root / "work" / "ckpt").exists()
    padded = distill(world | {"student": tmp_path / "mamba"}, tmp_path / "padded", batch_windows=4, losses=[LOSSES[0]])
    assert len(curve(tmp_path / "padded", "loss")) == 5
    assert padded


def test_too_little_text_for_a_budget_is_said_before_any_model_is_loaded(world, tmp_path):
    without_models = world | {"student": world["student"], "teacher": world["teacher"]}
    with pytest.raises(StageError, match=r"makes only [\d,]+ tokens, but one batch needs 100,000 \(batch_tokens\)"):
        distill(without_models, tmp_path, batch_tokens=100_000)


def test_a_batch_is_a_number_of_windows_or_of_tokens():
    assert DistillConfig(losses=LOSSES, steps=1).batch_windows == 8
    by_tokens = DistillConfig(losses=LOSSES, steps=1, batch_tokens=512)
    assert by_tokens.batch_windows is None
    for config in (by_tokens, DistillConfig(losses=LOSSES, steps=1, batch_windows=3)):
        assert DistillConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_tokens": 512, "batch_windows": 8}, "both say how much text a step takes; remove one"),
        (
            {"batch_tokens": 512, "window_tokens": 1024},
            r"batch_tokens \(512\) must be at least window_tokens \(1,024\)",
        ),
        ({"attention": "flash_attention_2", "dtype": "fp32"}, "computes in bf16 alone"),
        ({"attention": "flash"}, "'sdpa', 'flash_attention_2' or 'eager'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        DistillConfig(losses=LOSSES, steps=1, **options)
