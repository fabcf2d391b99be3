"""Which of the student's parameters learn."""

from __future__ import annotations

from torch import nn

from stages.training.config import TrainingConfig
from stages.training.optimiser import select_trainable


def choose_trained(model: nn.Module, config: TrainingConfig) -> None:
    """Freeze what does not train, and add the adapter that trains in its stead.

    Raises:
        StageError: a target of the adapter names no linear layer.
    """
    if config.adapter is None:
        select_trainable(model, config)
        return
    from stages.training.adapters.adapters import add_adapter  # PEFT takes a second to import

    add_adapter(model, config.adapter, config.seed)
