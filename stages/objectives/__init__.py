"""What a recipe may write under ``losses:``, validated. Light: the arithmetic is in ``losses/``."""

from __future__ import annotations

from pydantic import model_validator

from stages.objectives.base import ObjectiveOptions
from stages.objectives.chunk_scores import AlmOptions, HiddenStateOptions
from stages.objectives.tokens import CrossEntropyOptions
from stages.stage import StageConfig

__all__ = ["AlmOptions", "CrossEntropyOptions", "HiddenStateOptions", "LossEntry", "ObjectiveOptions"]


class LossEntry(StageConfig):
    """One term of the training loss: exactly one of the names below, with its options."""

    cross_entropy: CrossEntropyOptions | None = None
    """Next-token cross-entropy."""
    alm: AlmOptions | None = None
    """Approximate likelihood matching."""
    hidden_states: HiddenStateOptions | None = None
    """Hidden states at chunk ends."""

    @model_validator(mode="before")
    @classmethod
    def _empty_options(cls, value: object) -> object:
        # `- cross_entropy` and `- cross_entropy:` mean "with the defaults".
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict) and list(value.values()) == [None]:
            return {name: {} for name in value}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> LossEntry:
        names = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(names) != 1:
            raise ValueError(f"an entry of losses names exactly one loss, found {', '.join(names) or 'none'}")
        return self

    @property
    def name(self) -> str:
        """The loss's name."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def options(self) -> ObjectiveOptions:
        """The loss's options."""
        return getattr(self, self.name)
