"""Rows made with the help of a text encoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.initializers.base import InitializerOptions
from stages.stage import reference

ENCODER_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin")
"""What is read of an encoder's directory or fetched of its repository."""


class TokenAdaptOptions(InitializerOptions):
    """The pieces' rows weighted by similarity and length, and those of the nearest old tokens (TokenAdapt)."""

    method: Literal["tokenadapt"]
    encoder: str = reference()
    """A model of sentence embeddings, as a directory or hub repository that ``AutoModel`` and ``AutoTokenizer`` load. A
    text's embedding is the mean of its last hidden states."""
    global_weight: float = Field(0.3, ge=0, le=1)
    """Share of the nearest old tokens in a row; the rest is the pieces'."""
    temperature: float = Field(0.3, gt=0)
    """Of both softmaxes; lower puts more weight on the most similar."""
    neighbours: int = Field(3, ge=1)
    """Number of nearest old tokens."""
    threshold: float = Field(0.0, ge=0, lt=1)
    """Nearest tokens whose weight is lower are left out."""
    batch_size: int = Field(256, ge=1)
    """Texts encoded at once."""
