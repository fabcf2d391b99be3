"""What a step reports: every loss's weight, and the norm of its gradient at the input of the output head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from losses.scores import IGNORE_INDEX
from stages.distill import DistillConfig
from stages.stage import StageContext
from stages.training.backends.backend import PlainBackend
from stages.training.backends.zero import Zero
from stages.training.data.aligner import DocumentAligner
from stages.training.data.batch import Batch, collate
from stages.training.data.windows import Document
from stages.training.pairing import Models, load_models
from stages.training.step import Stepper
from stages.training.teachers.teaching import Teaching

TEXTS = ("The quick brown fox jumps over the lazy dog.", "Tokens are byte strings; two tokenizations of one text meet.")
STEPS = 4


@pytest.fixture(scope="module")
def directories(tiny_tokenizer_dirs, tiny_model_dir) -> tuple[Path, Path]:
    """A teacher and a student with another tokenizer."""
    teacher, student = (tiny_model_dir(directory, seed=seed) for seed, directory in enumerate(tiny_tokenizer_dirs))
    return teacher, student


@pytest.fixture
def batches(directories) -> list[Batch]:
    """Two micro-batches that differ in length."""
    aligner = DocumentAligner(*directories, window_tokens=48)
    return [collate(aligner(Document(text, text, 1.0), number, 0)) for number, text in enumerate(TEXTS)]


def _models(directories: tuple[Path, Path], losses: list, root: Path) -> tuple[Models, Stepper]:
    config = DistillConfig(losses=losses, steps=STEPS, dtype="fp32")
    ctx = StageContext(config=config, inputs={"student": {"s": directories[1]}}, work=root, out=root)
    models = load_models(ctx, config, config.losses, [Teaching(directories[0])], torch.device("cpu"), Zero())
    return models, Stepper(PlainBackend(models.student, config), models.terms, models.teachers, None, STEPS)


def _mean_cross_entropy_gradient(student: Path, batches: list[Batch]) -> Tensor:
    """The gradient of the mean over all scored tokens, in the final hidden states of all micro-batches, flattened."""
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    tokens = sum(int((batch.student.labels != IGNORE_INDEX).sum()) for batch in batches)
    gradients = []
    for side in (batch.student for batch in batches):
        hidden = model.model(side.ids, attention_mask=side.attention).last_hidden_state.detach().requires_grad_()
        total = F.cross_entropy(model.lm_head(hidden).flatten(0, 1), side.labels.flatten(), reduction="sum")
        (gradient,) = torch.autograd.grad(total / tokens, hidden)
        gradients.append(gradient.flatten())
    return torch.cat(gradients)


def test_a_gradient_norm_is_that_of_the_mean_over_the_whole_batch(directories, batches, tmp_path):
    _, stepper = _models(directories, ["cross_entropy", "hidden_states"], tmp_path)
    values = stepper.take(batches, 0, measure=True).read()
    expected = _mean_cross_entropy_gradient(directories[1], batches)
    assert values["cross_entropy.gradient_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)


def test_repeating_the_batch_scales_its_gradients_as_it_must(directories, batches, tmp_path):
    # The mean stays, each copy has half of the gradient, and the norm over both copies is 1 / sqrt(2) of one's.
    norms = []
    for repeats in (1, 2):
        _, stepper = _models(directories, ["cross_entropy", "hidden_states", "alm"], tmp_path)
        values = stepper.take(batches * repeats, 0, measure=True).read()
        norms.append([values[f"{name}.gradient_norm"] for name in stepper.names])
    assert norms[1] == pytest.approx([norm / 2**0.5 for norm in norms[0]], rel=1e-4)


def test_weights_are_logged_and_applied_as_the_schedules_have_them(directories, batches, tmp_path):
    losses = [
        {"cross_entropy": {"weight": 3.0, "weight_schedule": "linear"}},
        {"hidden_states": {"weight": 0.5, "weight_schedule": "cosine"}},
    ]
    _, stepper = _models(directories, losses, tmp_path)
    for step, (rising, falling) in enumerate([(0.75, 0.5), (1.5, 0.5 * 0.853553), (2.25, 0.25), (3.0, 0.5 * 0.146447)]):
        values = stepper.take(batches, step).read()
        logged = values["cross_entropy.weight"], values["hidden_states.weight"]
        assert logged == pytest.approx((rising, falling), rel=1e-5)
        expected = rising * values["cross_entropy"] + falling * values["hidden_states"]
        assert values["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layer", [-1, 2])
def test_the_last_layers_gradient_is_found_however_the_head_gets_its_input(directories, batches, tmp_path, layer):
    """Hooks around the head, such as ZeRO's, hand it a tensor of their own for the body's last hidden states."""
    norms = []
    for hooked in (False, True):
        models, stepper = _models(directories, ["cross_entropy", {"hidden_states": {"layers": [layer]}}], tmp_path)
        if hooked:
            models.student.head.register_forward_pre_hook(_pass_on_a_copy)
        norms.append(stepper.take(batches, 0, measure=True).read()["hidden_states.gradient_norm"])
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)


def _pass_on_a_copy(module: nn.Module, arguments: tuple) -> tuple:
    hidden, *others = arguments
    return hidden.clone(), *others
