"""The linear layers of a causal language model: what adapters are added to, and what is quantised."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All linear layers but the output head, by name, in the model's order."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
