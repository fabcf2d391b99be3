"""What a recipe says of evaluation text that is training text as well. Read while planning: nothing heavy is imported
here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from stages.stage import StageConfig


class OverlapOptions(StageConfig):
    """Held-out documents that share passages with the training text; ``overlap: report`` is ``{action: report}``."""

    action: Literal["report", "exclude", "refuse"] = "report"
    """``report`` counts and lists them; ``exclude`` also leaves them out of the evaluation; ``refuse`` fails."""
    share: float = Field(0.2, gt=0, le=1)
    """From what share of its bytes on, found in the training text, a document counts as overlapping."""
    words: int = Field(13, ge=2, le=100)
    """Words of a shared passage, whatever their case and what stands between them. 13 is GPT-3's choice (arXiv
    2005.14165)."""
    bytes: int = Field(50, ge=8, le=1000)
    """Bytes of a shared passage, character for character (arXiv 2107.06499 takes 50 tokens)."""

    @model_validator(mode="before")
    @classmethod
    def _action_alone(cls, value: Any) -> Any:
        return {"action": value} if isinstance(value, str) else value
