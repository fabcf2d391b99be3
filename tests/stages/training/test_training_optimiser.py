"""The schedule's values and which parameter gets which learning rate and decay."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.training.config import TrainingConfig
from stages.training.optimiser import learning_rate_factor, parameter_groups, select_trainable


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("linear", 0, 1 / 5),
        ("linear", 3, 4 / 5),
        ("linear", 4, 1.0),
        ("linear", 12, 0.5),
        ("linear", 19, 1 / 16),
        ("cosine", 4, 1.0),
        ("cosine", 12, 0.5),
        ("constant", 19, 1.0),
    ],
)
def test_schedule_values(schedule, step, expected):
    config = TrainingConfig(steps=20, warmup_steps=4, schedule=schedule)
    assert learning_rate_factor(step, config) == pytest.approx(expected)


def test_warm_up_as_long_as_training_is_refused():
    with pytest.raises(ValueError, match=r"warmup_steps \(5\) must be below steps \(5\)"):
        TrainingConfig(steps=5, warmup_steps=5)


@pytest.mark.parametrize("tied", [True, False])
def test_every_trainable_parameter_is_in_exactly_one_group(tiny_model_dir, tiny_tokenizer_dirs, tied):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir(tiny_tokenizer_dirs[0], tied=tied))
    config = TrainingConfig(steps=2, learning_rate=1e-3, embedding_learning_rate=5e-3, weight_decay=0.1)
    projector = torch.nn.Linear(3, 2)
    groups = parameter_groups(model, projector, config)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in [*model.parameters(), *projector.parameters()])
    peak = {id(p): group["peak"] for group in groups for p in group["params"]}
    assert peak[id(projector.weight)] == 2e-3
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert peak[id(model.get_input_embeddings().weight)] == 5e-3
    assert peak[id(model.get_output_embeddings().weight)] == 5e-3
    assert peak[id(model.model.layers[0].mlp.up_proj.weight)] == 1e-3
    assert decay[id(model.model.layers[0].mlp.up_proj.weight)] == 0.1
    assert decay[id(model.model.norm.weight)] == 0
    assert decay[id(model.get_input_embeddings().weight)] == 0


def test_only_the_vocabulary_learns_when_asked(tiny_model_dir, tiny_tokenizer_dirs):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir(tiny_tokenizer_dirs[0]))
    select_trainable(model, TrainingConfig(steps=1, trainable="embeddings"))
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning == ["model.embed_tokens.weight"]
    assert torch.is_grad_enabled()
