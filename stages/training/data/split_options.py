"""How a training stage splits tokens at random. Light: read while a run is planned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.objectives.base import WeightSchedule
from stages.stage import StageConfig


class SplitOptions(StageConfig):
    """What is split of the student's text, and how (docs/stochastok.md)."""

    proportion: float = Field(0.1, ge=0, le=1)
    """Split attempts as a share of a document's tokens; for a ``method`` that drops, the probability of that. 0 is the
    same-budget control."""
    method: Literal["stochastok", "bpe_dropout", "maxmatch_dropout"] = "stochastok"
    """``stochastok`` splits tokens in two; the baselines cut words anew: ``bpe_dropout`` leaves out merges at random,
    ``maxmatch_dropout`` takes the longest token that is not passed over."""
    law: Literal["steps", "binomial"] = "steps"
    """``steps``: the paper's, so many attempts at tokens of the sequence as it then is; ``binomial``: every token by
    itself, with probability ``proportion``."""
    rounds: int = Field(1, ge=1)
    """Of ``law: binomial``, passes with probability ``proportion / rounds`` each, which may split pieces again."""
    rounding: Literal["floor", "stochastic"] = "floor"
    """Of the number of attempts of ``law: steps``. With ``floor``, documents of fewer than 1 / ``proportion`` tokens
    are never split; ``stochastic`` gives the fraction as a chance of one more."""
    proportion_schedule: WeightSchedule = "constant"
    """How ``proportion`` moves over the steps: ``linear`` and ``reverse_cosine`` up from 0, ``cosine`` down to 0. It
    moves from one block of ``shuffle_documents`` documents to the next."""
    deterministic_share: float = Field(0.0, ge=0, lt=1)
    """Share of the documents that stay as the tokenizer gives them, drawn anew in every epoch."""
    cuts_inside_characters: bool = True
    """Whether ``method: stochastok`` may cut inside a character, as byte-level vocabularies allow; no text is lost."""
    byte_fallback_pairs: bool = False
    """Let ``method: stochastok`` write a character of two bytes as its two byte-fallback tokens."""

    @model_validator(mode="after")
    def _has_effect(self) -> SplitOptions:
        needs = {
            "law": ("method", "stochastok"),
            "rounding": ("law", "steps"),
            "rounds": ("law", "binomial"),
            "cuts_inside_characters": ("method", "stochastok"),
            "byte_fallback_pairs": ("method", "stochastok"),
        }
        for name, (other, value) in needs.items():
            changed = getattr(self, name) != type(self).model_fields[name].default
            if changed and (getattr(self, other) != value or self.method != "stochastok"):
                wanted = f"{other}: {value}" if self.method == "stochastok" else "method: stochastok"
                raise ValueError(f"{name} has no effect without {wanted}; add that, or remove it")
        if self.byte_fallback_pairs and not self.cuts_inside_characters:
            raise ValueError("byte_fallback_pairs cut inside characters; remove it, or cuts_inside_characters: false")
        return self
