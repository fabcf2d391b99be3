"""AdamW's parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from stages.sharded import whole_shape
from stages.training.config import TrainingConfig


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Share of the peak learning rate used by optimiser step ``step`` (0-based).

    Linear warm-up reaches 1 at step ``warmup_steps``; the decay would reach 0 at step ``steps``, one past the last.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    remaining = (config.steps - step) / (config.steps - config.warmup_steps)
    return remaining if config.schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * remaining))


def vocabulary_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The input embedding and the output head of a causal language model, each parameter once."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = {id(p): p for module in modules if module is not None for p in module.parameters()}
    return list(found.values())


def select_trainable(model: nn.Module, config: TrainingConfig) -> None:
    """Freeze what ``config.trainable`` leaves out."""
    chosen = {id(p) for p in vocabulary_parameters(model)}
    for parameter in model.parameters():
        parameter.requires_grad_(config.trainable == "all" or id(parameter) in chosen)


def parameter_groups(model: nn.Module, auxiliary: nn.Module, config: TrainingConfig) -> list[dict]:
    """AdamW groups: vocabulary-sized parameters, matrices (with weight decay), vectors, the objectives' own parameters.

    Each group carries its ``name`` and ``peak``, its own peak learning rate, which the schedule scales.
    """
    vocabulary = {id(p) for p in vocabulary_parameters(model)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    embedding_peak = config.embedding_learning_rate or config.learning_rate
    body = [p for p in trainable if id(p) not in vocabulary]
    auxiliary_peak = config.auxiliary_learning_rate or 2 * config.learning_rate
    groups = [
        ("vocabulary", [p for p in trainable if id(p) in vocabulary], embedding_peak, 0.0),
        ("matrices", [p for p in body if len(whole_shape(p)) >= 2], config.learning_rate, config.weight_decay),
        ("vectors", [p for p in body if len(whole_shape(p)) < 2], config.learning_rate, 0.0),
        ("auxiliary", list(auxiliary.parameters()), auxiliary_peak, 0.0),
    ]
    return [
        {"name": name, "params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
        for name, parameters, peak, decay in groups
        if parameters
    ]


def peak_rates(model: nn.Module, auxiliary: nn.Module, config: TrainingConfig) -> dict[str, float]:
    """Name of each of AdamW's groups -> its peak learning rate."""
    return {group["name"]: group["peak"] for group in parameter_groups(model, auxiliary, config)}


def set_learning_rate(optimiser: torch.optim.Optimizer, step: int, config: TrainingConfig) -> float:
    """Apply the schedule for ``step`` to every group; returns the factor."""
    factor = learning_rate_factor(step, config)
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    return factor
