"""Rows made of the rows of the tokens that a new token translates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.initializers.base import InitializerOptions
from stages.stage import reference

ITERATIONS = 5


class TransTokOptions(InitializerOptions):
    """Old rows weighted by how often their tokens are translated by the new one (Trans-Tokenization)."""

    method: Literal["trans_tok"]
    parallel: str | None = reference(None)
    """Sentences and their translations: a .tsv file with a sentence in the student's language, a tab and its
    translation into the target tokenizer's on each line, or a .jsonl file with the fields ``source`` and ``target``.
    One sentence a line: time and memory grow with the product of the two lengths."""
    counts: str | None = reference(None)
    """Instead of ``parallel``, how often tokens translate each other: a .tsv file with source token, target token and
    count on each line, or a .jsonl file with the fields ``source``, ``target`` and ``count``. A token is written as its
    text with a leading space where it has one, a special token as its string; in .jsonl a number is a token's id."""
    min_count: float = Field(10, ge=0)
    """Translations with a lower count are left out."""
    iterations: int | None = Field(None, ge=1)
    """Of expectation maximisation for aligning the words of ``parallel``, in each direction; default: 5."""

    @model_validator(mode="after")
    def _one_source_of_counts(self) -> TransTokOptions:
        if (self.parallel is None) == (self.counts is None):
            raise ValueError("name either 'parallel' (sentences and their translations) or 'counts' (of tokens)")
        if self.counts is not None and self.iterations is not None:
            raise ValueError("'iterations' is for aligning the words of 'parallel'; 'counts' are taken as they are")
        return self
