"""Options of what init does before and after the methods, the same for all of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.stage import StageConfig


class AnchorOptions(StageConfig):
    """Which shared tokens tie the two vocabularies together, for the methods that work through anchors."""

    undertrained: Literal["drop", "keep"] = "drop"
    """Tokens whose row looks like that of an unused token, in the student or in the donor."""
    special: bool = False
    """Special tokens that correspond."""
    byte_fallback: bool = False
    """Byte-fallback tokens, which are seen in rare characters only."""
    partial_utf8: bool = False
    """Tokens that are parts of characters."""
    added: bool = True
    """Tokens that were added to the vocabulary after it was made."""
    digits: bool = False
    """Numbers of several digits, even if the two tokenizers cut numbers differently."""


class PostOptions(StageConfig):
    """What is done to new rows of the input and output matrices after they were made, in this order."""

    centre: bool = False
    """Give the new rows the mean of the old ones."""
    scale: float = Field(1.0, gt=0)
    """Factor."""
    noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise, relative to the old rows' in each dimension."""
    longest: float | None = Field(None, gt=0, le=1)
    """Shorten longer rows to this quantile of the old rows' norms."""


class VerifyOptions(StageConfig):
    """The check of the finished model, in a process of its own."""

    text: Literal["built-in", "eval"] = "built-in"
    """What it predicts: a page in several scripts that comes with the program, or the documents of ``data.eval``."""
    documents: int = Field(8, ge=1)
    """How many documents of ``data.eval``."""
