"""Rows predicted by a network that a hypernet stage has trained."""

from __future__ import annotations

from typing import ClassVar, Literal

from stages.initializers.base import InitializerOptions, WantedInput
from stages.stage import not_keyed


class HypernetOptions(InitializerOptions):
    """The rows that the hypernetwork of a ``hypernet`` stage predicts (ZeTT)."""

    wanted_inputs: ClassVar[frozenset[WantedInput]] = frozenset({"hypernet"})

    method: Literal["hypernet"]
    batch_tokens: int = not_keyed(4096, ge=1)
    """Tokens whose rows are predicted at the same time; fewer need less memory."""
