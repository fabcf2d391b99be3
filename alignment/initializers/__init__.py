"""Methods that make the rows of a new vocabulary from those of an old one, found by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from alignment.vocab import VocabAlignment

INITIALIZERS: dict[str, str] = {"fvt": "alignment.initializers.fvt:fvt"}


def load_initializer(name: str) -> Callable[[Tensor, VocabAlignment], Tensor]:
    """The function (source rows [V_source, D], alignment) -> target rows [V_target, D] registered as ``name``.

    Raises:
        KeyError: no method has that name.
    """
    module, _, attribute = INITIALIZERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
