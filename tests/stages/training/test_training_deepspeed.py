"""Two CPU processes take the same steps as one, whatever ZeRO splits; checkpoints of one layout go on in another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import process_world
import pytest
import torch
from safetensors.torch import load_file

from stages.distill import DistillConfig
from stages.objectives.capabilities import CAPABILITIES
from stages.stage import StageContext, StageError
from stages.training.backends import process_group
from stages.training.backends.deepspeed_config import teacher_settings
from stages.training.backends.zero import split_while_loading
from stages.worker import EXIT_INTERRUPTED

STEPS = 4
LOSSES = [
    {"alm": {"weight": 5.0, "gamma": 0.0, "temperature": 20.0}},
    {"cross_entropy": {}},
    {"hidden_states": {}},
]
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159.",
] * 4
OFFLOADED = {
    "student": 3,
    "teacher": 3,
    "offload_optimizer": "cpu",
    "offload_parameters": "cpu",
    "offload_teacher": "cpu",
}
GIVEN = {"zero_optimization": {"stage": "auto", "reduce_bucket_size": 500}, "train_batch_size": 8}
# The models here are so small that ZeRO-3 would split them, but never put them away again.
PUT_AWAY = {"zero_optimization": {"stage3_param_persistence_threshold": 0, "reduce_bucket_size": 5000}}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    documents = tmp_path_factory.mktemp("documents")
    records = [{"id": f"d/{n}", "domain": "d", "weight": 1.0, "text": text} for n, text in enumerate(TEXTS)]
    (documents / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (documents / "manifest.json").write_text("{}")
    return {
        "teacher": tiny_model_dir(tiny_tokenizer_dirs[0], seed=1),
        "student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2, tied=False),
        "documents": documents,
    }


def _train(world, root: Path, processes: int, zero: dict, *, given=None, **options) -> process_world.Done:
    settings = {"losses": LOSSES, "steps": STEPS, "learning_rate": 1e-3, "dtype": "fp32", "checkpoint_every": 1}
    sizes = {"batch_windows": 8, "micro_batch_windows": 2, "window_tokens": 48, "data_workers": 0}
    config = DistillConfig(**{**settings, **sizes, "keep_checkpoints": STEPS, "log_every": 1, **options})
    resources = {"zero": zero} | ({"deepspeed": given} if given is not None else {})
    return process_world.run(process_world.write_job(root, world, config, resources), processes)


def _trained(world, root: Path, processes: int, zero: dict, **options) -> Path:
    done = _train(world, root, processes, zero, **options)
    assert done.codes == (0,) * processes, done.text
    return root


def _curve(root: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (root / "out" / "training.jsonl").read_text().splitlines()]


def _assert_same_training(root: Path, expected: Path, names=("loss", "gradient_norm"), rel: float = 1e-5) -> None:
    for name in names:
        assert _curve(root, name) == pytest.approx(_curve(expected, name), rel=rel, abs=1e-7), name
    ours, theirs = (load_file(directory / "out" / "model.safetensors") for directory in (root, expected))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=5e-5, rtol=1e-3)


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory) -> Path:
    return _trained(world, tmp_path_factory.mktemp("plain"), 1, {"student": 0})


def _layout(processes: int, zero: dict, **options):
    words = [f"{key}={value}" for key, value in {**zero, **options}.items() if not isinstance(value, dict)]
    return pytest.param(processes, zero, options, id="-".join([f"{processes}p", *words]))


def _slow(layout):
    return pytest.param(*layout.values, id=layout.id, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("processes", "zero", "options"),
    [
        _layout(2, {"student": 0}),
        _layout(2, {"student": 2, "offload_optimizer": "cpu"}, given=GIVEN),
        _layout(2, OFFLOADED, activation_checkpointing=True, given=PUT_AWAY),
        _slow(_layout(2, {"student": 1})),
        _slow(_layout(2, {"student": 2}, activation_checkpointing=True)),
        _slow(_layout(2, {"student": 3}, given=PUT_AWAY)),
        _slow(_layout(2, {"student": 1, "teacher": 3, "offload_optimizer": "cpu"})),
        _slow(_layout(2, {"student": 3}, micro_batch_windows=4)),
        _slow(_layout(2, {"student": 2, "offload_optimizer": "cpu"}, micro_batch_windows=1)),
        _slow(_layout(2, {"student": 3}, packing=True)),
        _slow(_layout(1, {"student": 2})),
        _slow(_layout(1, {"student": 3, "teacher": 3})),
    ],
)
def test_every_layout_gives_the_losses_and_weights_of_one_process(world, plain, tmp_path, processes, zero, options):
    root = _trained(world, tmp_path, processes, zero, **options)
    names = ("loss", "alm", "cross_entropy", "hidden_states", "alm.gradient_norm", "gradient_norm")
    _assert_same_training(root, plain, names)
    if given := options.get("given"):
        recorded = json.loads((root / "work" / "deepspeed.json").read_text())["student"]["zero_optimization"]
        assert recorded["reduce_bucket_size"] == given["zero_optimization"]["reduce_bucket_size"]
        assert recorded["stage"] == zero["student"]


@pytest.mark.parametrize("zero", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_buckets_of_the_size_of_what_trains_change_no_bit(world, tmp_path, zero):
    whole = {"zero_optimization": {"reduce_bucket_size": 500_000_000, "allgather_bucket_size": 500_000_000}}
    losses = {"losses": ["cross_entropy"]}
    ours = _trained(world, tmp_path / "ours", 2, {"student": zero}, **losses)
    theirs = _trained(world, tmp_path / "theirs", 2, {"student": zero}, given=whole, **losses)
    recorded = json.loads((ours / "work" / "deepspeed.json").read_text())["student"]["zero_optimization"]
    trained = sum(value.numel() for value in load_file(world["student"] / "model.safetensors").values())
    assert recorded["reduce_bucket_size"] == trained
    assert recorded.get("allgather_bucket_size", trained) == trained
    for name in ("loss", "gradient_norm"):
        assert _curve(ours, name) == _curve(theirs, name)


@pytest.mark.slow
def test_a_tied_student_of_more_rows_than_tokens_stays_so(world, tmp_path):
    from transformers import AutoModelForCausalLM

    student = tmp_path / "padded"
    shutil.copytree(world["student"], student)
    model = AutoModelForCausalLM.from_pretrained(student)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.resize_token_embeddings(len(model.get_input_embeddings().weight) + 24)
    model.save_pretrained(student)
    inputs = world | {"student": student}
    one = _trained(inputs, tmp_path / "one", 1, {"student": 0})
    two = _trained(inputs, tmp_path / "two", 2, {"student": 3})
    _assert_same_training(two, one)
    assert "lm_head.weight" not in load_file(two / "out" / "model.safetensors")


def _continue(world, before: Path, root: Path, step: int, processes: int, zero: dict, **options) -> str:
    """Train on in ``root`` from the checkpoint of ``step`` that was saved in ``before``; returns what was said."""
    checkpoint = f"work/ckpt/step-{step}"
    shutil.copytree(before / checkpoint, root / checkpoint)
    points = (before / "work" / "training.jsonl").read_text().splitlines(keepends=True)
    (root / "work" / "training.jsonl").write_text("".join(points[:step]))
    done = _train(world, root, processes, zero, **options)
    assert done.codes == (0,) * processes, done.text
    assert f"resuming after step {step}/{STEPS}" in done.text
    return done.text


@pytest.mark.parametrize(
    "layouts",
    [
        [(2, {"student": 3}), (2, {"student": 1}), (1, {"student": 0})],
        pytest.param([(1, {"student": 2}), (2, {"student": 2}), (1, {"student": 3})], marks=pytest.mark.slow),
        pytest.param([(2, {"student": 0}), (2, OFFLOADED), (2, {"student": 2})], marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_on_in_any_layout(world, plain, tmp_path, layouts):
    before = plain
    for step, (processes, zero) in enumerate(layouts, start=1):
        root = tmp_path / str(step)
        text = _continue(world, before, root, step, processes, zero)
        assert "note: saved by " in text
        _assert_same_training(root, plain)
        before = root


def test_the_same_layout_goes_on_bit_by_bit(world, tmp_path):
    whole = _trained(world, tmp_path / "whole", 2, {"student": 2}, dtype="bf16")
    _continue(world, whole, tmp_path / "half", 2, 2, {"student": 2}, dtype="bf16")
    ours, theirs = (load_file(root / "out" / "model.safetensors") for root in (tmp_path / "half", whole))
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
    assert _curve(tmp_path / "half", "loss") == _curve(whole, "loss")


@pytest.mark.parametrize("zero", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_bf16_with_split_master_weights_follows_the_plain_run(world, plain, tmp_path, zero):
    root = _trained(world, tmp_path, 2, {"student": zero}, dtype="bf16")
    # The bf16 forward pass rounds to three digits; a wrong scale of loss or gradient would show in the first.
    assert _curve(root, "loss") == pytest.approx(_curve(plain, "loss"), rel=2e-2)
    assert _curve(root, "gradient_norm") == pytest.approx(_curve(plain, "gradient_norm"), rel=2e-2)
    assert load_file(root / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


@pytest.mark.slow
def test_balancing_by_gradients_is_the_same_on_two_processes(world, tmp_path):
    # Every objective's gradient is taken on its own, which DeepSpeed's hooks must not take for the step's gradient.
    options = {"losses": [{"alm": {"gamma": 0.0, "temperature": 20.0}}, {"strict": {}}], "combine": "gradmag"}
    one = _trained(world, tmp_path / "one", 1, {"student": 0}, **options)
    two = _trained(world, tmp_path / "two", 2, {"student": 3, "teacher": 3}, given=PUT_AWAY, **options)
    _assert_same_training(two, one, ("loss", "strict", "alm.weight", "strict.gradient_norm"), rel=1e-4)


@pytest.mark.slow
def test_every_objective_is_the_same_on_two_processes(world, tmp_path):
    # With all parameters split, every matrix that an objective multiplies by must be whole around it.
    one_vocabulary = {each.objective for each in CAPABILITIES if each.vocabularies in ("identical", "subset")}
    names = [each.objective for each in CAPABILITIES if each.objective not in one_vocabulary and not each.on_policy]
    one = _trained(world, tmp_path / "one", 1, {"student": 0}, losses=names, steps=2)
    two = _trained(world, tmp_path / "two", 2, {"student": 3, "teacher": 3}, losses=names, steps=2, given=PUT_AWAY)
    for name in names:
        for measure in (name, f"{name}.gradient_norm"):
            assert _curve(two, measure) == pytest.approx(_curve(one, measure), rel=1e-3, abs=1e-6), measure


@pytest.mark.parametrize("zero", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_gradient_that_is_not_finite_ends_the_run(world, tmp_path, zero):
    options = {"losses": ["cross_entropy"], "learning_rate": 1e30, "max_rollbacks": 0}
    done = _train(world, tmp_path, 2, {"student": zero}, **options)
    assert not {0, EXIT_INTERRUPTED} & set(done.codes)
    assert "the gradient is not finite" in done.text
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_every_process_leaves_the_group_before_it_ends(world, tmp_path):
    # A group that the interpreter's exit takes apart aborts the process about once in ten times.
    done = _train(world, tmp_path, 2, {"student": 1}, steps=1)
    assert done.text.count("in a group: False") == 2


@pytest.mark.slow
def test_what_waits_on_nvme_trains_the_same_and_goes_on(world, plain, tmp_path):
    if not _nvme_can_be_reached():
        pytest.skip("needs libaio with its headers")
    zero = {"student": 3, "offload_optimizer": "nvme", "offload_parameters": "nvme", "nvme_path": str(tmp_path)}
    _continue(world, plain, tmp_path, 1, 2, zero)
    _assert_same_training(tmp_path, plain)


def _nvme_can_be_reached() -> bool:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return AsyncIOBuilder().is_compatible(verbose=False)


def test_nvme_that_cannot_be_reached_is_refused_before_anything_is_loaded(world, tmp_path):
    if _nvme_can_be_reached():
        pytest.skip("NVMe can be reached from here")
    zero = {"student": 3, "offload_optimizer": "nvme", "nvme_path": str(tmp_path)}
    done = _train(world, tmp_path, 1, zero, losses=["cross_entropy"])
    assert done.codes == (1,)
    assert "needs DeepSpeed's async_io, which cannot be built here: it wants libaio" in done.text
    assert "loading the student" not in done.text


def test_processes_that_do_not_see_each_other_are_refused(tmp_path, monkeypatch):
    # Each would take itself for the only one, and read all of the data: accelerate's silent trap.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    ctx = StageContext(config=None, inputs={}, work=tmp_path, out=tmp_path, rank=1, world_size=2)
    with pytest.raises(StageError, match=r"process 1 of 2, but torch.distributed says 0 of 1"):
        process_group.join(ctx, torch.device("cpu"))


def test_splitting_ends_with_the_model_that_is_to_be_split():
    # As long as transformers finds the configuration, it splits every model that it loads.
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    settings = teacher_settings({"teacher": 3}, "fp32", width=32, given={})
    with split_while_loading(settings):
        assert is_deepspeed_zero3_enabled()
    assert not is_deepspeed_zero3_enabled()
    with pytest.raises(FileNotFoundError), split_while_loading(settings):
        Path("absent").stat()
    assert not is_deepspeed_zero3_enabled()
    with split_while_loading(settings | {"zero_optimization": {"stage": 2}}):
        assert not is_deepspeed_zero3_enabled()
