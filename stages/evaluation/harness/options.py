"""What a recipe says of lm-evaluation-harness. Read while planning: nothing heavy is imported here."""

from __future__ import annotations

import importlib.util

from pydantic import Field, field_validator

from stages.stage import StageConfig, Switch, reference


class LmEvalOptions(StageConfig):
    """Tasks of lm-evaluation-harness."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of tasks, groups or tags: of ``include``, or of those that come with lm-eval. What a task reads from the
    Hugging Face hub must be in the cache already; the task is skipped otherwise, with the reason."""
    include: str | None = reference(None)
    """A directory with tasks of your own (``*.yaml``), which go before lm-eval's of the same name. Relative paths in
    them are relative to this directory, and data files must lie below it: its content is part of the cache key."""
    num_fewshot: int | None = Field(None, ge=0)
    """Solved examples before each question; by default as many as the task says. A task that fixes it at 0 keeps 0."""
    limit: int | None = Field(None, ge=1)
    """Ask the first so many documents of each task; all by default."""
    chat_template: Switch = None
    """Put the questions in each model's own chat template, examples as turns of their own. Models without one are
    skipped."""
    window_bytes: int = Field(1500, ge=16)
    """Whole texts (``loglikelihood_rolling``) of more bytes are read in windows of at most so many, of which the first
    half was read before: the same bytes for all models."""
    bytes_per_token: int = Field(4, ge=1)
    """A task limits what a model may write in tokens (``max_gen_toks``), which are not the same for all models: each
    stands for so many UTF-8 bytes."""
    seed: int = Field(1234, ge=0)
    """Seeds the choice of solved examples, and whatever a task draws."""

    @field_validator("tasks")
    @classmethod
    def _named_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({name for name in value if value.count(name) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is there more than once")
        return value


def missing_package() -> str | None:
    """What to do about lm-eval that is not installed; None where it is."""
    if importlib.util.find_spec("lm_eval") is not None:
        return None
    return 'needs the package lm-eval, which is not installed: `pip install "tokenferry[eval]"`'
