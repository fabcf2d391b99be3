"""Objectives with trained projectors: how these start, that they are trained, saved and sharded like the student."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import process_world
import pytest
import torch
from objective_world import World, evaluate, hidden_states, make_world, padded, without_scores
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from losses.output import LossOutput
from stages.artifacts import ModelArtifact
from stages.distill import Distill, DistillConfig
from stages.objectives import LossEntry
from stages.stage import StageContext, StageError, StageInterrupted
from stages.training.data.batch import Batch
from stages.training.objectives import Objective
from stages.training.saving.state_files import StateReader

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159.",
] * 3
ALIGNMENTS = ("eta", "cma")
STEPS = 4


@pytest.fixture(scope="module")
def worlds(tiny_tokenizer_dirs) -> dict[str, World]:
    first, second = tiny_tokenizer_dirs
    return {
        "pair": make_world(first, second),
        "identical": make_world(first, first, width=5),
        "wide": make_world(first, second, width=500),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    """A teacher, a student with another tokenizer, and documents."""
    documents = tmp_path_factory.mktemp("documents")
    records = [{"id": f"d/{n}", "domain": "d", "weight": 1.0, "text": text} for n, text in enumerate(TEXTS)]
    (documents / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (documents / "manifest.json").write_text("{}")
    return {
        "teacher": tiny_model_dir(tiny_tokenizer_dirs[0], seed=1),
        "student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2),
        "documents": documents,
    }


def _config(alignment: str, **options: object) -> DistillConfig:
    return DistillConfig(
        **{
            "losses": [{"dskd": {"alignment": alignment}}],
            "steps": STEPS,
            "batch_windows": 4,
            "window_tokens": 48,
            "learning_rate": 3e-3,
            "log_every": 1,
            "dtype": "fp32",
        }
        | options
    )


def _distill(models: dict[str, Path], root: Path, config: DistillConfig, **context: object) -> dict[str, Tensor]:
    for name in ("work", "out"):
        (root / name).mkdir(parents=True, exist_ok=True)
    inputs = {name: {name: path} for name, path in models.items()}
    Distill().run(StageContext(config=config, inputs=inputs, work=root / "work", out=root / "out", **context))
    ModelArtifact.verify(root / "out")
    return load_file(root / "out" / "model.safetensors")


def _curve(root: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (root / "out" / "training.jsonl").read_text().splitlines()]


def _trained(root: Path) -> list[Tensor]:
    """Everything that is trained, at the last step: the student's parameters and the projectors."""
    state = StateReader(root / "work" / "ckpt" / f"step-{STEPS}")
    return [state.read(name, "master") for name in state.shapes]


def test_projectors_start_where_either_head_says_the_same(worlds) -> None:
    """With one model on both sides the projection changes nothing, whatever the hidden states."""
    projectors = worlds["identical"].build("dskd").auxiliary
    for projector in projectors.values():
        torch.testing.assert_close(projector.weight, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-6)


def test_random_projectors_are_a_function_of_the_seed(worlds) -> None:
    world = worlds["pair"]
    other = dataclasses.replace(world, pair=dataclasses.replace(world.pair, seed=8))
    first, again, another = (w.build("dskd", projectors="random").auxiliary for w in (world, world, other))
    for name, projector in first.items():
        assert torch.equal(projector.weight, again[name].weight)
        assert not torch.equal(projector.weight, another[name].weight)


def test_one_model_on_both_sides_is_at_rest(worlds) -> None:
    world = worlds["identical"]
    batch = world.batch()
    same = hidden_states(world, batch, "teacher", seed=1).requires_grad_()
    output = evaluate(world, world.build("dskd"), batch, teacher_hidden=same, student_hidden=same)
    for part in ("student_space", "teacher_space"):
        assert float(output.metrics[part][0]) == pytest.approx(0, abs=1e-6)
    (found,) = torch.autograd.grad(output.total, same)
    assert found.abs().max() < 1e-5


def test_too_few_shared_tokens_are_refused_with_the_way_out(worlds) -> None:
    with pytest.raises(StageError, match=r"dskd\.projectors: pseudo_inverse .* width 500 .* Use projectors: random"):
        worlds["wide"].build("dskd")
    worlds["wide"].build("dskd", projectors="random")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 0.1, "divergence": "kl"}, "alpha is a parameter of"),
        ({"beta": 0.1}, "beta is a parameter of"),
        ({"temperature": 0}, "greater than 0"),
        ({"alignment": "dtw"}, "'eta' or 'cma'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said) -> None:
    with pytest.raises(ValueError, match=said):
        LossEntry.model_validate({"dskd": options})


@pytest.fixture(scope="module")
def attention(worlds) -> tuple[World, Objective]:
    """The variant that the harness of all objectives, which takes default options, does not reach."""
    return worlds["pair"], worlds["pair"].build("dskd", alignment="cma")


def _statistics(attention: tuple[World, Objective], batch: Batch) -> Tensor:
    from objective_world import signals

    world, objective = attention
    states = hidden_states(world, batch, "teacher", seed=1)
    return objective.statistics(batch, signals(world, batch, "teacher", objective.teacher_reads, states))


def _gradient(attention: tuple[World, Objective], batch: Batch) -> tuple[LossOutput, Tensor]:
    world, objective = attention
    states = hidden_states(world, batch, "student", seed=2).requires_grad_()
    output = evaluate(world, objective, batch, student_hidden=states)
    return output, torch.autograd.grad(output.total, states)[0]


def test_attention_does_not_see_padding(attention) -> None:
    batch = attention[0].batch()
    output, found = _gradient(attention, batch)
    wide, wide_found = _gradient(attention, Batch(padded(batch.student, 3), padded(batch.teacher, 5), batch.num_chunks))
    torch.testing.assert_close(wide.total, output.total, rtol=1e-10, atol=0)
    assert wide.count == output.count
    torch.testing.assert_close(wide_found[:, :-3], found, rtol=1e-8, atol=1e-12)
    assert wide_found[:, -3:].abs().max() == 0


def test_attention_and_its_scales_do_not_depend_on_the_split_into_micro_batches(attention) -> None:
    world, objective = attention
    batch = world.batch()
    whole, _ = _gradient(attention, batch)
    parts = [world.batch([window]) for window in reversed(world.windows)]
    statistics = sum(_statistics(attention, part) for part in parts)
    torch.testing.assert_close(statistics, _statistics(attention, batch))
    outputs = [evaluate(world, objective, part, statistics=statistics) for part in parts]
    total = sum(output.total for output in outputs)
    torch.testing.assert_close(total.detach(), whole.total.detach(), rtol=1e-9, atol=0)
    assert sum(int(output.count) for output in outputs) == whole.count == statistics[0]


def test_attention_leaves_out_what_is_said_after_the_text(attention) -> None:
    world, _ = attention
    batch = world.batch(world.windows[:1])
    _, found = _gradient(attention, batch)
    last = int(batch.student.attention.sum()) - 1
    first = int(batch.student.scored[0].nonzero()[0]) - 1
    assert found[0, last].abs().max() == 0
    assert found[0, first].abs().max() > 0


def test_attention_over_nothing_is_zero_with_finite_gradients(attention) -> None:
    output, found = _gradient(attention, without_scores(attention[0].batch()))
    assert (float(output.total.detach()), int(output.count)) == (0, 0)
    assert found.abs().max() == 0


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_training_lowers_the_loss_and_its_parts(models, tmp_path, alignment) -> None:
    _distill(models, tmp_path, _config(alignment, steps=25, batch_windows=8, auxiliary_learning_rate=0.1))
    for name in ("loss", "dskd.projector_cross_entropy", "dskd.teacher_space"):
        curve = _curve(tmp_path, name)
        assert sum(curve[-5:]) < 0.9 * sum(curve[:5]), name
    accuracy = _curve(tmp_path, "dskd.projector_accuracy")
    assert sum(accuracy[-5:]) > sum(accuracy[:5])


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_resumed_run_equals_an_uninterrupted_one_projectors_included(models, tmp_path, alignment, dtype) -> None:
    config = _config(alignment, dtype=dtype, checkpoint_every=2)
    expected = _distill(models, tmp_path / "straight", config)
    polls = iter([False, False, True])
    with pytest.raises(StageInterrupted):
        _distill(models, tmp_path / "resumed", config, should_stop=lambda: next(polls))
    resumed = _distill(models, tmp_path / "resumed", config)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())
    assert not any("projector" in name or "auxiliary" in name for name in expected)
    straight, continued = _trained(tmp_path / "straight"), _trained(tmp_path / "resumed")
    assert len(straight) == len(expected) + (2 if alignment == "eta" else 3)
    assert all(torch.equal(left, right) for left, right in zip(straight, continued, strict=True))


def test_the_split_of_a_training_batch_changes_nothing(models, tmp_path) -> None:
    whole = _distill(models, tmp_path / "whole", _config("cma"))
    split = _distill(models, tmp_path / "split", _config("cma", micro_batch_windows=1))
    assert _curve(tmp_path / "split", "loss") == pytest.approx(_curve(tmp_path / "whole", "loss"), rel=1e-5)
    for name, tensor in whole.items():
        torch.testing.assert_close(split[name], tensor, atol=5e-5, rtol=1e-3)


# With a second loss the engine also takes gradients in the hidden states alone, past the sharded projectors.
BALANCED = {"losses": [{"dskd": {"alignment": "cma", "projectors": "random"}}, "cross_entropy"], "combine": "gradmag"}

SHARDED_WIDTH = 352
"""ZeRO-3 keeps matrices of fewer than 100,000 numbers whole everywhere; these projectors and heads have more."""


@pytest.fixture(scope="module")
def wide_models(models, tmp_path_factory) -> dict[str, Path]:
    """The models again, with matrices that ZeRO-3 really shards."""
    wide = {"documents": models["documents"]}
    for seed, side in enumerate(("teacher", "student")):
        config = AutoConfig.from_pretrained(
            models[side], hidden_size=SHARDED_WIDTH, intermediate_size=16, num_hidden_layers=1
        )
        torch.manual_seed(seed)
        wide[side] = tmp_path_factory.mktemp("wide-model")
        AutoModelForCausalLM.from_config(config).save_pretrained(wide[side])
        AutoTokenizer.from_pretrained(models[side]).save_pretrained(wide[side])
    return wide


def test_sharded_over_two_processes_projectors_learn_the_same(wide_models, tmp_path) -> None:
    config = _config("cma", micro_batch_windows=1, **BALANCED)
    expected = _distill(wide_models, tmp_path / "plain", config)
    root = tmp_path / "sharded"
    job = process_world.write_job(root, wide_models, config, {"zero": {"student": 3}})
    done = process_world.run(job, 2)
    assert done.codes == (0, 0), done.text
    for name in ("loss", "dskd.projector_cross_entropy", "dskd.teacher_space"):
        assert _curve(root, name) == pytest.approx(_curve(tmp_path / "plain", name), rel=1e-4), name
    sharded = load_file(root / "out" / "model.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(sharded[name], tensor, atol=1e-4, rtol=1e-3)
