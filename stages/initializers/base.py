"""What the options of every initializer have in common."""

from __future__ import annotations

from typing import ClassVar, Literal

from stages.stage import StageConfig

WantedInput = Literal["donor", "documents", "hypernet"]
"""``donor``: a model that already uses the target tokenizer (``models.donor``); ``documents``: ``data.train``;
``hypernet``: what a hypernet stage under ``needs`` has made."""


class InitializerOptions(StageConfig):
    """Options of one method; each method adds ``method: Literal["its name"]``."""

    wanted_inputs: ClassVar[frozenset[WantedInput]] = frozenset()
    """Inputs of the init stage without which the method cannot work."""
