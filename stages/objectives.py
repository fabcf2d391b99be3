"""What a recipe may write under ``losses:``, validated. Light: the arithmetic is in ``losses/``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.stage import StageConfig


class CrossEntropyOptions(StageConfig):
    """Next-token cross-entropy of the student on the training text."""

    weight: float = Field(1.0, gt=0)
    """Factor of the mean over scored tokens."""


class AlmOptions(StageConfig):
    """Approximate likelihood matching of chunks (arXiv 2503.20083)."""

    weight: float = Field(1.0, gt=0)
    """Factor of the mean over chunks. The gradient shrinks like 1/temperature, which a weight of that size undoes."""
    temperature: float = Field(5.0, gt=0)
    """Chunk log-probabilities are divided by it before they are compared."""
    gamma: float = Field(0.1, ge=0, le=1)
    """A chunk ends only where the teacher gives a boundary at least this probability; else it joins the next chunk."""
    debias: bool = True
    """Add the log-probability that a boundary follows, so that tokenizers with longer tokens are not favoured."""
    divergence: Literal["kl", "reverse_kl", "tvd", "kl_temperature_limit", "k2", "k3"] = "kl"
    """Divergence between the teacher's and the student's chunk probability."""


class HiddenStateOptions(StageConfig):
    """Squared distance of hidden states at common byte boundaries; teacher and student need the same width."""

    weight: float = Field(1.0, gt=0)
    """Factor of the mean over chunk ends, layers and channels of the relative squared error."""
    layers: tuple[int, ...] = Field((-1,), min_length=1)
    """Compared layers, as indices into transformers' ``hidden_states``: 0 the embedding, -1 the final norm's output."""


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
    def options(self) -> CrossEntropyOptions | AlmOptions | HiddenStateOptions:
        """The loss's options."""
        return getattr(self, self.name)
