"""The options of an adapter. Light: read while a run is planned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

LayerName = Annotated[str, Field(min_length=1)]


class Adapter(BaseModel):
    """Low-rank updates of linear layers, trained instead of the layers' own weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    method: Literal["lora", "dora"] = "lora"
    """``lora``: W + (alpha / rank) B A (arXiv 2106.09685); ``dora``: the same direction with a trained length of every
    row (arXiv 2402.09353)."""
    rank: int = Field(16, ge=1)
    """Rows of A and columns of B."""
    alpha: float | None = Field(None, gt=0)
    """The update is scaled by ``alpha`` / ``rank``; default: twice the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the inputs of A that are zeroed while training."""
    targets: tuple[LayerName, ...] | None = Field(None, min_length=1)
    """Adapted layers, by the ends of their names (``[q_proj, v_proj]``); default: all linear layers but the output
    head."""
    embeddings: Literal["train", "freeze"] = "train"
    """Whether the input embedding and the output head train, whole: a student that was given another vocabulary has new
    rows there, which no adapter of other layers can repair."""

    @property
    def scale(self) -> float:
        """Factor of the product B A."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank
