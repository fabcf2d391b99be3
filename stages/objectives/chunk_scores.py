"""Options of objectives that compare chunks: their probabilities, or the hidden states at their ends."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from stages.objectives.base import ObjectiveOptions
from stages.objectives.capabilities import Need

LayerPair = tuple[int, int]
"""Layers of the teacher and of the student, as indices into transformers' ``hidden_states``."""


class AlmOptions(ObjectiveOptions):
    """Approximate likelihood matching of chunks (arXiv 2503.20083).

    The gradient shrinks like 1/temperature, which a weight of that size undoes.
    """

    temperature: float = Field(5.0, gt=0)
    """Chunk log-probabilities are divided by it before they are compared."""
    gamma: float | None = Field(0.1, ge=0, le=1)
    """A chunk ends only where the teacher gives a boundary more than this probability; else it joins the next chunk.
    null: every chunk by itself."""
    max_group_chunks: int | None = Field(None, ge=1)
    """Most chunks that gamma may join, so that text without spaces does not become one long chunk; null: no limit."""
    debias: bool = True
    """Add the log-probability that a boundary follows, so that tokenizers with longer tokens are not favoured."""
    divergence: Literal["kl", "reverse_kl", "tvd", "kl_temperature_limit", "k2", "k3"] = "kl"
    """Divergence between the teacher's and the student's chunk probability."""

    @property
    def needs(self) -> Need | None:
        return "boundary" if self.debias or self.gamma is not None else None

    @model_validator(mode="after")
    def _limit_has_an_effect(self) -> AlmOptions:
        if self.gamma is None and self.max_group_chunks is not None:
            raise ValueError("max_group_chunks limits what gamma joins; remove it, or set gamma")
        return self


def _is_layer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(_is_layer(each) for each in value)


class HiddenStateOptions(ObjectiveOptions):
    """Distance of hidden states at the last token of every chunk, relative to the size of the teacher's."""

    layers: Literal["all"] | tuple[int | LayerPair, ...] = (-1,)
    """Compared layers, as indices into transformers' ``hidden_states``: 0 the embedding, -1 the final norm's output.
    A list of indices, or of pairs ``[teacher, student]``; ``last`` is ``[-1]``, ``all`` needs equally deep models."""
    distance: Literal["l2", "l1"] = "l2"
    """Squared or absolute difference."""
    channelwise: bool = True
    """Divide by the teacher's mean magnitude in each channel; else by its mean over all channels, where the few large
    ones rule."""
    projection: bool = False
    """Map the student's states by a trainable linear layer a pair of layers; needed where the widths differ."""

    @field_validator("layers", mode="before")
    @classmethod
    def _one_spelling(cls, value: object) -> object:
        if value == "last":
            return (-1,)
        if value == "all":
            return value
        if not isinstance(value, list | tuple) or not all(_is_layer(each) or _is_pair(each) for each in value):
            raise ValueError(
                f"should be last, all, a list of layers as [-1, 4], or of pairs as [[teacher, student], ...], "
                f"not {value!r}"
            )
        return tuple(each[0] if _is_pair(each) and each[0] == each[1] else each for each in value)

    @field_validator("layers")
    @classmethod
    def _some_layers_once(cls, value: str | tuple[int | LayerPair, ...]) -> str | tuple[int | LayerPair, ...]:
        if not value:
            raise ValueError("name at least one layer, or use last or all")
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ValueError("a layer is named twice")
        return value

    def layer_pairs(self, num_layers: int) -> tuple[LayerPair, ...]:
        """The compared layers of teacher and student; ``num_layers`` is what ``all`` stands for."""
        if self.layers == "all":
            return tuple((layer, layer) for layer in range(num_layers))
        return tuple(layer if isinstance(layer, tuple) else (layer, layer) for layer in self.layers)

    @property
    def reaches_head_input(self) -> bool:
        return self.layers != "all" and all(student == -1 for _, student in self.layer_pairs(0))

    @property
    def trains_projector(self) -> bool:
        return self.projection
