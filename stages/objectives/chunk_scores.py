"""Options of objectives that compare chunks: their probabilities, or the hidden states at their ends."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.objectives.base import ObjectiveOptions


class AlmOptions(ObjectiveOptions):
    """Approximate likelihood matching of chunks (arXiv 2503.20083).

    The gradient shrinks like 1/temperature, which a weight of that size undoes.
    """

    temperature: float = Field(5.0, gt=0)
    """Chunk log-probabilities are divided by it before they are compared."""
    gamma: float = Field(0.1, ge=0, le=1)
    """A chunk ends only where the teacher gives a boundary at least this probability; else it joins the next chunk."""
    debias: bool = True
    """Add the log-probability that a boundary follows, so that tokenizers with longer tokens are not favoured."""
    divergence: Literal["kl", "reverse_kl", "tvd", "kl_temperature_limit", "k2", "k3"] = "kl"
    """Divergence between the teacher's and the student's chunk probability."""


class HiddenStateOptions(ObjectiveOptions):
    """Squared distance of hidden states at common byte boundaries; teacher and student need the same width."""

    layers: tuple[int, ...] = Field((-1,), min_length=1)
    """Compared layers, as indices into transformers' ``hidden_states``: 0 the embedding, -1 the final norm's output."""
