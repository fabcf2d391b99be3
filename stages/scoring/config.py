"""Options of ``score``. Light: read while a run is planned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from stages.objectives.capabilities import Need
from stages.scoring.manifest import gives
from stages.stage import StageConfig, not_keyed, reference
from stages.training.teachers.teacher_options import TeacherDtype

WAY_TO_KEEP: dict[Need, str] = {
    "top_k": "give it top_k",
    "hidden_states": "give it hidden_states, with these layers",
    "boundary": "imported scores have it with boundary: top_k; alm does without it with gamma: null and debias: false",
}
"""What to do for scores to hold what an objective needs, where they can."""


class ScoresConfig(StageConfig):
    """What every stage that makes a ScoresArtifact tells about it before it has run."""

    @property
    def gives(self) -> frozenset[Need]:
        """What objectives may ask of a teacher that is known by these scores alone."""
        raise NotImplementedError


class ScoreConfig(ScoresConfig):
    """Options of ``score``."""

    top_k: int | None = Field(None, ge=2)
    """Keep so many of the teacher's most probable tokens after every token, with the mass of the others and the
    entropy; 8 bytes each, 6 with ``number_format: float16``. Default: the scores alone."""
    hidden_states: tuple[Annotated[int, Field(ge=-1)], ...] = ()
    """Keep the hidden states of these layers, as indices into transformers' ``hidden_states``: 0 the embedding, -1 the
    final norm's output. 4 bytes a channel, or 2."""
    window_tokens: int = Field(1024, ge=8)
    """Longest text that the teacher reads at once, in its tokens. A longer one is read in overlapping pieces; of a
    longer conversation only the beginning is scored."""
    context_tokens: int | None = Field(None, ge=1)
    """Tokens that a piece repeats of the one before it, as context alone, so that every token is scored once and none
    with less context, but for the start of the text; default: a quarter of ``window_tokens``."""
    dtype: TeacherDtype = "bf16"
    """How the teacher's weights are held: ``bf16``, ``fp32``, or quantised by bitsandbytes to ``int8`` or ``nf4``."""
    number_format: Literal["float32", "float16"] = "float32"
    """How log-probabilities and hidden states are kept; ``float16`` has 11 bits and needs half the disk."""
    batch_tokens: int = not_keyed(8192, ge=1)
    """Tokens of one forward pass of one process, padding included."""
    shard_bytes: int = not_keyed(1 << 20, ge=1)
    """Text in one shard; an interrupted stage repeats no more than the shards it was working on."""

    def check_processes(self, count: int) -> None:
        """Any number of processes: each scores documents of its own."""

    @field_validator("hidden_states")
    @classmethod
    def _layers_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a layer is named twice")
        return value

    @model_validator(mode="after")
    def _room_for_new_tokens(self) -> ScoreConfig:
        if self.context_tokens is not None and self.context_tokens >= self.window_tokens:
            raise ValueError(
                f"context_tokens ({self.context_tokens}) must be below window_tokens ({self.window_tokens}): a piece "
                "scores what is not context"
            )
        return self

    @property
    def context(self) -> int:
        """Tokens that a piece repeats of the one before it."""
        return self.window_tokens // 4 if self.context_tokens is None else self.context_tokens

    @property
    def gives(self) -> frozenset[Need]:
        return gives(boundary=True, top_k=self.top_k, hidden_layers=self.hidden_states)


class ImportScoresConfig(ScoresConfig):
    """Options of ``import-scores``."""

    path: str = reference()
    """A .jsonl file of what a server returned, a record a document."""
    model: str = "unknown"
    """What to call the teacher; only recorded."""
    boundary: Literal["none", "top_k"] = "none"
    """``top_k``: take the most probable tokens that were returned for the next position, and begin with white space or
    are among ``special_tokens``, for the log-mass of a boundary: a lower bound. ``none``: leave it unknown."""
    special_tokens: tuple[str, ...] = ()
    """Strings of the teacher's special tokens, which stand for no text and count as boundaries."""

    @property
    def gives(self) -> frozenset[Need]:
        return gives(boundary=self.boundary == "top_k", top_k=None, hidden_layers=())
