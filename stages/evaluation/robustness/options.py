"""What a recipe says of the robustness sections. Read while planning: nothing heavy is imported here."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from pydantic import Field, field_validator

from stages.stage import StageConfig, Switch

Perturbation = Literal[
    *("swap", "delete", "duplicate", "keyboard", "case", "homoglyph", "diacritic", "spacing", "ocr"),
]


class PromptBoundaryOptions(StageConfig):
    """Prompts that end inside a token."""

    positions: int = Field(100, ge=1)
    """Places of each kind where held-out text is cut."""
    context_bytes: int = Field(300, ge=32)
    """Longest text before a cut."""
    characters: int = Field(20, ge=1)
    """Length of the continuation after a cut."""
    seed: int = Field(0, ge=0)
    """Seeds the choice of places."""
    exact_bytes: Switch = None
    """Also score every continuation by all tokens that its bytes could be made of, which a cut cannot harm."""


class InvarianceOptions(StageConfig):
    """Held-out text in random segmentations."""

    excerpts: int = Field(24, ge=2)
    """How many excerpts, spread over the domains."""
    excerpt_bytes: int = Field(400, ge=32)
    """Longest excerpt."""
    segmentations: int = Field(4, ge=2)
    """Random segmentations of each."""
    proportion: float = Field(0.1, gt=0, le=1)
    """Attempted splits per token, as of StochasTok."""
    seed: int = Field(0, ge=0)
    """Seeds the choice of excerpts and the splits."""


class NoiseOptions(StageConfig):
    """Misspelled text."""

    VERSION: ClassVar[int] = 1
    """Raise it when the same options give other questions."""

    questions: int = Field(40, ge=4)
    """Questions for a missing word of held-out text, each asked once clean and once with every perturbation."""
    excerpts: int = Field(16, ge=2)
    """Excerpts of held-out text whose bits are counted clean and with every perturbation."""
    excerpt_bytes: int = Field(300, ge=64)
    """Longest excerpt, and longest text before a missing word."""
    perturbations: tuple[Perturbation, ...] = Field(get_args(Perturbation), min_length=1)
    """Which perturbations; all by default."""
    severities: tuple[float, ...] = Field((0.1, 0.3), min_length=1)
    """Shares of the words that are changed; those of a lower one are changed at a higher one as well."""
    seed: int = Field(0, ge=0)
    """Seeds questions, excerpts and perturbations."""

    @field_validator("perturbations")
    @classmethod
    def _distinct(cls, value: tuple[Perturbation, ...]) -> tuple[Perturbation, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a perturbation is there more than once")
        return value

    @field_validator("severities")
    @classmethod
    def _ascending_shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < severity <= 1 for severity in value):
            raise ValueError("severities are shares of words, above 0 and at most 1")
        if list(value) != sorted(set(value)):
            raise ValueError("severities go from low to high, none twice")
        return value
