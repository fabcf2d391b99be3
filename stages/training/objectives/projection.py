"""Trained linear layers of objectives: how they are made, and how they are applied."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def random_layer(inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = False) -> nn.Linear:
    """A linear layer whose matrix is drawn uniformly, as PyTorch's layers start; its bias, if any, is zero."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    bound = 1 / math.sqrt(inputs)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def project(states: Tensor, layer: nn.Linear) -> Tensor:
    """``states [..., inputs]`` through the layer: ``[..., outputs]``, in the layer's dtype.

    The layer is not called: DeepSpeed takes a gradient that passes through a called module for the step's own, and the
    engine takes some in hidden states alone, to balance or report losses. ZeRO-3 gathers what objectives train around
    the student's output head, where they are evaluated.
    """
    return nn.functional.linear(states.to(layer.weight.dtype), layer.weight, layer.bias)
