"""Rows made of the rows of the old tokens that spell the new one, or that it meets in text."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stages.initializers.base import InitializerOptions, WantedInput

_ORDERED = ("geometric", "exponential", "linear")
DECAY, RATE, MAX_SOURCES = 0.5, 2.0, 64
_NEEDS = {"decay": ("geometric",), "rate": ("exponential",), "emphasis": _ORDERED, "max_sources": ("frequency",)}


class PieceMeanOptions(InitializerOptions):
    """The mean of the pieces' rows (Fast Vocabulary Transfer)."""

    method: Literal["piece_mean"]


class PieceWeightedOptions(InitializerOptions):
    """A weighted mean of the rows of a token's pieces."""

    default_emphasis: ClassVar[dict[str, str]] = {"geometric": "first", "exponential": "role", "linear": "role"}

    method: Literal["piece_weighted"]
    weights: Literal["char_length", "geometric", "exponential", "linear", "first", "last", "frequency"] = "char_length"
    """What a piece counts: ``char_length``, its characters, a leading space among them; ``geometric``, a power of
    ``decay``; ``exponential``, exp(``rate`` * place); ``linear``, n to 1; ``first`` and ``last``, nothing but that
    piece. ``frequency`` takes all old tokens that overlap the new one in the training text, by how often they do, and
    leaves tokens that the text does not have to the next method."""
    decay: float | None = Field(None, ge=0, le=1)
    """Of ``geometric``: a piece's weight relative to its neighbour's; 0 leaves one piece, 1 is the mean; default:
    0.5."""
    rate: float | None = Field(None, gt=0)
    """Of ``exponential``; default: 2, as AdaptiVocab has it."""
    emphasis: Literal["first", "last", "role"] | None = None
    """The piece that ``geometric``, ``exponential`` and ``linear`` weigh most. ``role``: the last one for an input
    matrix and the first one for an output. None: the first one for ``geometric``, by role for the others."""
    max_sources: int | None = Field(None, ge=1)
    """Of ``frequency``: old tokens that one new token is made of at most, the most frequent ones; default: 64."""

    @property
    def wanted_inputs(self) -> frozenset[WantedInput]:
        """The training text, to count in."""
        return frozenset({"documents"}) if self.weights == "frequency" else frozenset()

    @model_validator(mode="after")
    def _check_effect(self) -> PieceWeightedOptions:
        for option, schemes in _NEEDS.items():
            if getattr(self, option) is not None and self.weights not in schemes:
                raise ValueError(
                    f"{option} has no effect on weights: {self.weights}; it belongs to {', '.join(schemes)}"
                )
        return self
