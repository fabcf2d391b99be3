"""Parameters that DeepSpeed ZeRO-3 has split over processes: their whole shape, and their whole values for a while.

Light: needs no DeepSpeed where nothing is split.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """The parameter's shape; of a split one, what it has when whole (split, its own shape is ``[0]``)."""
    return getattr(parameter, "ds_shape", parameter.shape)


def is_split(model: nn.Module) -> bool:
    """Whether ZeRO-3 has split the model's parameters."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def whole(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
    """Within it, the parameters are whole in every process, to be read. Collective where any of them is split."""
    split = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not split:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(split, modifier_rank=None)
