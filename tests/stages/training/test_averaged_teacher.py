"""``teacher: ema``: the float32 average of the student's float32 master weights, whatever the compute type."""

from __future__ import annotations

from pathlib import Path

import process_world
import pytest
import torch
from on_policy_world import make_world

from stages.distill import DistillConfig
from stages.stage import StageContext
from stages.training.backends.backend import PlainBackend
from stages.training.backends.zero import Zero
from stages.training.models import DTYPES
from stages.training.pairing import Models, load_models
from stages.training.saving import state_files
from stages.training.teachers.averaged_teacher import followed
from stages.training.teachers.teaching import Teaching

DECAY = 0.999
LOSSES = ["cross_entropy", {"alm": {"gamma": 0.0}}]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    """A student and documents."""
    made = make_world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir)
    return {name: made[name] for name in ("student", "documents")}


def _models(student: Path, root: Path, **options) -> tuple[Models, DistillConfig]:
    config = DistillConfig(losses=LOSSES, steps=100, window_tokens=48, teacher="ema", **options)
    ctx = StageContext(config=config, inputs={"student": {"s": student}}, work=root, out=root)
    teaching = Teaching(student, dtype=config.dtype, average=DECAY)
    return load_models(ctx, config, config.losses, [teaching], torch.device("cpu"), Zero()), config


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_average_is_that_of_the_master_weights_in_full_precision(world, tmp_path, dtype):
    """Steps so small that bf16 shows them in the weights next to 0 alone."""
    models, config = _models(world["student"], tmp_path, dtype=dtype, learning_rate=2e-7, schedule="constant")
    (teacher,) = models.teachers
    backend = followed(PlainBackend(models.student, config), models.teachers, saves=True)
    name = "model.model.layers.0.mlp.up_proj.weight"
    parameter = models.student.get_parameter(name)
    before = parameter.detach().clone()
    expected = before.double()
    for step in range(20):
        backend.backward(sum(p.float().sum() for p in models.student.parameters()), last=True)
        backend.step(step)
        expected = DECAY * expected + (1 - DECAY) * dict(backend.masters())[name].double()
    moved = (parameter != before).double().mean()
    assert moved < 0.1 if dtype == "bf16" else moved == 1
    backend.save(tmp_path)
    average = torch.load(tmp_path / "averaged_teacher.pt", weights_only=True)[name]
    assert average.dtype == torch.float32
    # Adam goes 2e-7 a step: after 20, the average has moved by 0.001 * 2e-7 * (1 + 2 + ... + 20) = 4.2e-8.
    assert (before.float() - average).double().mean() == pytest.approx(4.2e-8, rel=0.1)
    torch.testing.assert_close(average.double(), expected, rtol=1e-6, atol=0)
    scoring = dict(teacher._scoring.named_parameters())[name]
    assert torch.equal(scoring, average.to(DTYPES[dtype]))


def test_what_does_not_train_is_not_held_twice_and_stays(world, tmp_path):
    models, config = _models(world["student"], tmp_path, dtype="bf16", trainable="embeddings", learning_rate=0.1)
    (teacher,) = models.teachers
    before = {name: p.detach().clone() for name, p in teacher._scoring.named_parameters()}
    backend = followed(PlainBackend(models.student, config), models.teachers, saves=True)
    for step in range(3):
        backend.backward(sum(p.float().sum() for p in models.student.parameters() if p.requires_grad), last=True)
        backend.step(step)
    backend.save(tmp_path)
    averages = torch.load(tmp_path / "averaged_teacher.pt", weights_only=True)
    assert averages.keys() == {"model.model.embed_tokens.weight", "model.lm_head.weight"}
    for name, value in teacher._scoring.named_parameters():
        assert torch.equal(value, before[name]) == (name not in averages), name


def test_under_zero_the_average_is_that_of_the_split_master_weights(world, tmp_path):
    """Each checkpoint has both, so the one follows from the others."""
    options = {"losses": LOSSES, "teacher": "ema", "ema_decay": 0.75, "dtype": "bf16", "learning_rate": 1e-4}
    sizes = {"steps": 3, "batch_windows": 4, "window_tokens": 48, "data_workers": 0}
    config = DistillConfig(**options, **sizes, checkpoint_every=1, keep_checkpoints=4)
    job = process_world.write_job(tmp_path, world, config, {"zero": {"student": 2}})
    done = process_world.run(job, 2)
    assert done.codes == (0, 0), done.text
    expected: dict[str, torch.Tensor] = {}
    for step in range(4):
        directory = tmp_path / "work" / "ckpt" / f"step-{step}"
        saved = state_files.StateReader(directory)
        averages = torch.load(directory / "averaged_teacher.pt", weights_only=True)
        assert len(averages) > 10
        for name, average in averages.items():
            master = saved.read(name, "master").view_as(average).double()
            expected[name] = 0.75 * expected[name] + 0.25 * master if step else master
            torch.testing.assert_close(average.double(), expected[name], rtol=1e-6, atol=1e-9)
