"""The engine's promises: batch splits change nothing, resumed runs equal uninterrupted ones, equality is rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.artifacts import ModelArtifact
from stages.distill import Distill, DistillConfig
from stages.stage import StageContext, StageError, StageInterrupted
from stages.stochastok import StochasTok, StochasTokConfig

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159.",
] * 3

# A random teacher expects no boundary and finds every chunk improbable: merging would leave one hopeless group.
ALM = {"alm": {"weight": 5.0, "gamma": 0.0, "temperature": 20.0}}
EVERY_LOSS = [ALM, {"cross_entropy": {}}, {"hidden_states": {"layers": [1, -1]}}]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    """A teacher, a student with another tokenizer, and documents."""
    documents = tmp_path_factory.mktemp("documents")
    with (documents / "documents.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(SENTENCES):
            file.write(json.dumps({"id": f"d/{number}", "domain": "d", "weight": 1.0, "text": text}) + "\n")
    (documents / "manifest.json").write_text("{}")
    return {
        "teacher": tiny_model_dir(tiny_tokenizer_dirs[0], seed=1),
        "student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2),
        "documents": documents,
    }


class _StopAfter:
    """Asks the stage to stop once it was polled ``polls`` times."""

    def __init__(self, polls: int) -> None:
        self.left = polls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def _context(world, root: Path, config, **options) -> StageContext:
    work, out = root / "work", root / "out"
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(exist_ok=True)
    inputs = {name: {name: path} for name, path in world.items()}
    return StageContext(config=config, inputs=inputs, work=work, out=out, **options)


def _distill(world, root: Path, *, context=None, **options) -> dict[str, torch.Tensor]:
    options = {
        "losses": EVERY_LOSS,
        "steps": 6,
        "batch_windows": 4,
        "window_tokens": 48,
        "learning_rate": 3e-3,
    } | options
    ctx = _context(world, root, DistillConfig(**options), **(context or {}))
    Distill().run(ctx)
    ModelArtifact.verify(ctx.out)
    return load_file(ctx.out / "model.safetensors")


def _curve(root: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (root / "out" / "training.jsonl").read_text().splitlines()]


def _assert_equal(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=lambda loss: next(iter(loss)))
def test_training_lowers_a_loss_on_the_text_it_sees(world, tmp_path, loss):
    _distill(world, tmp_path, losses=[loss], steps=30, batch_windows=8, log_every=1)
    curve = _curve(tmp_path, "loss")
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("combine", ["sum", "gradmag"])
def test_splitting_the_batch_changes_nothing(world, tmp_path, micro, combine):
    losses = EVERY_LOSS if combine == "sum" else [{"alm": {}}, {"cross_entropy": {}}]
    options = {"losses": losses, "combine": combine, "dtype": "fp32", "log_every": 1}
    whole = _distill(world, tmp_path / "whole", **options)
    split = _distill(world, tmp_path / "split", micro_batch_windows=micro, **options)
    _assert_equal(whole, split, atol=2e-5, rtol=1e-4)
    assert _curve(tmp_path / "whole", "loss") == pytest.approx(_curve(tmp_path / "split", "loss"), rel=1e-5)


def test_a_teacher_that_is_the_student_gives_zero_loss_and_moves_nothing(world, tmp_path):
    same = world | {"student": world["teacher"]}
    losses = [ALM, {"hidden_states": {}}]
    trained = _distill(same, tmp_path, losses=losses, dtype="fp32", log_every=1)
    assert max(_curve(tmp_path, "loss")) < 1e-6
    # AdamW divides by the gradient's own size, so only gradients that are exactly zero leave the weights alone.
    _assert_equal(trained, load_file(world["teacher"] / "model.safetensors"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_an_interrupted_run_ends_bitwise_like_an_uninterrupted_one(world, tmp_path, dtype, stop_after):
    options = {"dtype": dtype, "checkpoint_every": 2, "log_every": 1}
    expected = _distill(world, tmp_path / "straight", **options)
    with pytest.raises(StageInterrupted):
        _distill(world, tmp_path / "resumed", context={"should_stop": _StopAfter(stop_after)}, **options)
    assert list((tmp_path / "resumed" / "out").iterdir()) == []
    lines: list[str] = []
    resumed = _distill(world, tmp_path / "resumed", context={"progress": lines.append}, **options)
    assert f"resuming after step {stop_after}/6" in lines
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name
    assert _curve(tmp_path / "straight", "loss") == _curve(tmp_path / "resumed", "loss")


@pytest.mark.parametrize("combine", ["gradmag", "gradnorm", "pcgrad"])
def test_balanced_weights_and_projectors_survive_a_resume(world, tmp_path, combine):
    losses = [{"alm": {"gamma": 0.0, "temperature": 20.0}}, {"cross_entropy": {}}, {"dskd": {}}]
    options = {"losses": losses, "combine": combine, "dtype": "fp32", "log_every": 1}
    expected = _distill(world, tmp_path / "straight", **options)
    with pytest.raises(StageInterrupted):
        _distill(world, tmp_path / "resumed", context={"should_stop": _StopAfter(3)}, **options)
    resumed = _distill(world, tmp_path / "resumed", **options)
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_corrupted_checkpoint_falls_back_to_the_previous_one_and_says_so(world, tmp_path):
    options = {"checkpoint_every": 2}
    expected = _distill(world, tmp_path / "straight", **options)
    with pytest.raises(StageInterrupted):
        _distill(world, tmp_path / "resumed", context={"should_stop": _StopAfter(5)}, **options)
    (newest,) = (tmp_path / "resumed" / "work" / "ckpt" / "step-5").glob("*.safetensors")
    newest.write_bytes(newest.read_bytes()[:-100])
    lines: list[str] = []
    resumed = _distill(world, tmp_path / "resumed", context={"progress": lines.append}, **options)
    assert sum(f"passing over checkpoint step-5: {newest.name} is not what was saved" in line for line in lines) == 1
    assert "resuming after step 4/6" in lines
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_line_of_progress_has_every_loss_where_there_are_several(world, tmp_path):
    several, one = [], []
    losses = [ALM, "cross_entropy"]
    _distill(world, tmp_path / "several", steps=1, losses=losses, context={"progress": several.append})
    _distill(world, tmp_path / "one", steps=1, losses=losses[1:], context={"progress": one.append})
    (step,) = (line for line in several if line.startswith("step 1/1"))
    point = json.loads((tmp_path / "several" / "out" / "training.jsonl").read_text())
    assert f"loss {point['loss']:.4f} (alm {point['alm']:.4g}, cross_entropy {point['cross_entropy']:.4g})" in step
    assert not any("cross_entropy" in line for line in one)


def test_the_seed_decides_the_run(world, tmp_path):
    first = _distill(world, tmp_path / "a", seed=1, steps=2)
    again = _distill(world, tmp_path / "b", seed=1, steps=2)
    other = _distill(world, tmp_path / "c", seed=2, steps=2)
    name = "model.embed_tokens.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_dropout_depends_on_the_seed_and_the_step_alone(world, tmp_path):
    # Not on what the process drew before, nor on where an earlier attempt broke off.
    student = tmp_path / "student"
    shutil.copytree(world["student"], student)
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.3}))
    options = {"losses": ["cross_entropy"], "steps": 4, "dtype": "fp32"}
    first = _distill(world | {"student": student}, tmp_path / "first", **options)
    with pytest.raises(StageInterrupted):
        _distill(world | {"student": student}, tmp_path / "b", context={"should_stop": _StopAfter(2)}, **options)
    torch.rand(1)
    resumed = _distill(world | {"student": student}, tmp_path / "b", **options)
    without = _distill(world, tmp_path / "without", **options)
    name = "model.embed_tokens.weight"
    assert torch.equal(first[name], resumed[name])
    assert not torch.equal(first[name], without[name])


def test_the_exported_directory_loads_without_our_code(world, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _distill(world, tmp_path, steps=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)
    assert (
        tokenizer("The quick fox").input_ids
        == AutoTokenizer.from_pretrained(world["student"])("The quick fox").input_ids
    )


def test_hidden_states_of_another_width_or_depth_are_refused_before_training(world, tmp_path):
    with pytest.raises(StageError, match="has hidden states 0 to 2, not 7"):
        _distill(world, tmp_path, losses=[{"hidden_states": {"layers": [7]}}])


def test_a_batch_that_does_not_divide_is_refused(world, tmp_path):
    with pytest.raises(StageError, match=r"batch_windows \(4\) must be processes \(1\) × micro_batch_windows \(3\)"):
        _distill(world, tmp_path, micro_batch_windows=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"losses": [{"alm": {}}, {"alm": {}}]}, "names alm twice"),
        ({"losses": [{"alm": {}, "cross_entropy": {}}]}, "exactly one loss"),
        ({"losses": [{"alm": {}}], "combine": "gradmag"}, "two or more losses"),
        ({"losses": [{"alm": {"weight": 2}}, {"cross_entropy": {}}], "combine": "gradmag"}, "remove them from alm"),
        ({"losses": [{"alm": {"weight_schedule": "linear"}}, "cross_entropy"], "combine": "pcgrad"}, "from alm"),
        ({"losses": []}, "at least 1 item"),
    ],
)
def test_losses_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        DistillConfig(steps=1, **options)


def test_stochastok_trains_on_split_text_and_differs_from_its_control(world, tmp_path):
    weights = {}
    for proportion in (0.0, 0.5):
        config = StochasTokConfig(steps=3, batch_windows=4, window_tokens=48, proportion=proportion, log_every=1)
        ctx = _context(world, tmp_path / str(proportion), config)
        StochasTok().run(ctx)
        ModelArtifact.verify(ctx.out)
        weights[proportion] = load_file(ctx.out / "model.safetensors")["model.embed_tokens.weight"]
    assert not torch.equal(weights[0.0], weights[0.5])


def test_padding_rows_of_the_vocabulary_get_no_probability(world, tmp_path, tiny_tokenizer_dirs):
    """A student whose matrix is longer than its tokenizer trains like the one without padding."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    padded = tmp_path / "padded"
    model = AutoModelForCausalLM.from_pretrained(world["student"])
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows + 24, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[rows:] = 0.0
    model.save_pretrained(padded)
    AutoTokenizer.from_pretrained(world["student"]).save_pretrained(padded)
    options = {"losses": [ALM, {"cross_entropy": {}}], "dtype": "fp32", "log_every": 1}
    _distill(world, tmp_path / "plain", **options)
    trained = _distill(world | {"student": padded}, tmp_path / "with", **options)
    assert _curve(tmp_path / "with", "loss") == pytest.approx(_curve(tmp_path / "plain", "loss"), rel=1e-5)
    assert trained["model.embed_tokens.weight"][rows:].abs().max() == 0


def test_alm_without_debiasing_still_merges_by_the_boundary(world, tmp_path):
    _distill(world, tmp_path, losses=[{"alm": {"debias": False, "gamma": 0.01}}], steps=2)


def test_a_batch_in_which_a_loss_finds_nothing_is_no_end(world, tmp_path):
    """Chunks of one student token alone count, of which single windows may have none; cross-entropy goes on."""
    said: list[str] = []
    options = {"losses": [{"dpca": {"max_chunk_tokens": 1}}, {"cross_entropy": {}}], "batch_windows": 1, "steps": 8}
    swapped = world | {"teacher": world["student"], "student": world["teacher"]}
    _distill(swapped, tmp_path, **options, window_tokens=8, log_every=1, context={"progress": said.append})
    curve = [json.loads(line) for line in (tmp_path / "out" / "training.jsonl").read_text().splitlines()]
    idle = [point for point in curve if point["dpca.units"] == 0]
    assert idle
    assert len(idle) < len(curve)
    assert all("dpca" not in point and point["cross_entropy"] > 0 for point in idle)
    assert sum("dpca found nothing to compare" in line for line in said) == 1
