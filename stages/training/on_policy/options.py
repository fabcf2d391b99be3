"""What a recipe may write under ``on_policy:``. Light: read while a run is planned."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import Field, model_validator

from stages.stage import StageConfig, not_keyed


class GuardOptions(StageConfig):
    """When to end a run whose student collapses: limits on what it writes, of the mean of the last steps."""

    on_breach: Literal["stop", "warn"] = "stop"
    """``stop`` ends the stage; ``warn`` says so once for each guard and goes on."""
    reference_steps: int = Field(20, ge=1)
    """The first steps, whose mean is what ``length_growth``, ``cut_off_rise``, ``indentation_loss`` and
    ``repetition_rise`` compare with."""
    recent_steps: int = Field(10, ge=1)
    """Steps whose mean is compared with the limits; no guard speaks before there are as many."""
    length_growth: float | None = Field(2.0, gt=1)
    """Largest growth of the median or of the 95th percentile of the rollouts' tokens; null: no limit."""
    cut_off_rise: float | None = Field(0.5, gt=0, le=1)
    """Largest rise of the share of rollouts that ``max_new_tokens`` cuts off; null: no limit."""
    stop_mass: float | None = Field(0.5, gt=0, le=1)
    """Largest share of empty rollouts, and largest mass on ending at once; null: no limit."""
    white_space_rise: float | None = Field(0.4, gt=0, le=1)
    """How much larger the share of white space may be than in the text that the prompts come from; null: no limit."""
    indentation_loss: float | None = Field(0.7, gt=0, le=1)
    """Largest loss of indentation: of the indented lines, relative to the first steps, where the text that the prompts
    come from has some; null: no limit."""
    content_share: float | None = Field(0.5, gt=0, lt=1)
    """Smallest share of the written bytes that both models can score; null: no limit."""
    repetition_rise: float | None = Field(0.5, gt=0, le=1)
    """Largest rise of the share of repeated runs of four tokens; null: no limit."""


class OnPolicyOptions(StageConfig):
    """The student continues prompts in every step, and its losses are taken on what it wrote."""

    fraction: float = Field(1.0, ge=0, le=1)
    """Share of a step's windows that the student writes; the others are text of the data as without this option."""
    prompt_tokens: tuple[int, int] = (16, 64)
    """Fewest and most student tokens of a prompt taken from the beginning of a text; the number is drawn evenly."""
    max_new_tokens: int = Field(128, ge=1)
    """Most tokens that the student writes after a prompt; what is cut off there gets no credit for ending."""
    temperature: float = Field(1.0, gt=0)
    """1 samples the student's own distribution."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the fewest tokens that together have this probability at least."""
    top_k: int | None = Field(None, ge=1)
    """Draw from the most probable tokens only; null: from all."""
    batch: int | None = not_keyed(None, ge=1)
    """Rollouts that one process writes at the same time; default: its whole share of a step's."""
    guards: GuardOptions = not_keyed(GuardOptions())
    """When to end a run whose student collapses; not part of the key, so that a run goes on under other limits."""

    @model_validator(mode="after")
    def _prompts_have_a_length(self) -> OnPolicyOptions:
        fewest, most = self.prompt_tokens
        if not 1 <= fewest <= most:
            raise ValueError(f"prompt_tokens: [{fewest}, {most}] should be the fewest and the most tokens, from 1 up")
        return self

    def check(self, batch_windows: int | None, window_tokens: int, losses: Collection[str], learning: bool) -> None:
        """Refuse what cannot work in a stage.

        Args:
            batch_windows: windows in one step; None where steps are measured in tokens.
            window_tokens: longest window.
            losses: names of the objectives.
            learning: one of them asks the teacher.

        Raises:
            ValueError: says what does not fit, and what would.
        """
        if batch_windows is None:
            raise ValueError("on_policy counts rollouts, so a step must be counted in batch_windows, not batch_tokens")
        if not learning:
            raise ValueError("on_policy has no effect: none of the losses asks the teacher what the student wrote")
        rollouts = self.rollouts(batch_windows)
        if (rollouts == 0) != (self.fraction == 0) or (rollouts == batch_windows) != (self.fraction == 1):
            raise ValueError(
                f"on_policy.fraction {self.fraction:g} of batch_windows {batch_windows} is {rollouts} windows; raise "
                "batch_windows, or move fraction towards 0.5"
            )
        if self.fraction == 1 and "cross_entropy" in losses:
            raise ValueError(
                "cross_entropy on nothing but the student's own text teaches nothing on average; remove it, or use "
                "on_policy.fraction below 1"
            )
        longest = self.prompt_tokens[1] + self.max_new_tokens
        if longest >= window_tokens:
            raise ValueError(
                f"on_policy: prompt_tokens ({self.prompt_tokens[1]:,}) and max_new_tokens ({self.max_new_tokens:,}) "
                f"must stay below window_tokens ({window_tokens:,}); lower them, or make it more than {longest:,}"
            )

    def rollouts(self, batch_windows: int) -> int:
        """How many of a step's windows the student writes."""
        return round(self.fraction * batch_windows)
