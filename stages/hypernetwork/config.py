"""Options of the ``hypernet`` stage. Light: read while a run is planned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.stage import StageConfig, not_keyed


class HypernetConfig(StageConfig):
    """The network, the tokenizers that it practises on, and its optimisation; ZeTT's values in brackets."""

    steps: int = Field(ge=1)
    """Optimiser steps, each with a tokenizer of its own (200,000)."""
    hidden_size: int | None = Field(None, ge=1)
    """Width of the network (the model's); default: the student's width."""
    layers: int = Field(3, ge=1)
    """Transformer layers (3)."""
    heads: int = Field(16, ge=1)
    """Attention heads; they must divide ``hidden_size`` (32)."""
    expansion: int = Field(2, ge=1)
    """Width of a layer's feed-forward part, in units of ``hidden_size`` (2)."""
    max_pieces: int = Field(16, ge=1)
    """Pieces of a token that the network sees, from the left (16; Mistral 7)."""
    priors: bool = False
    """Show the network the tokens' Unigram log-probabilities, in every other step; a target tokenizer that has none,
    such as BPE, goes without."""
    lexical_weight: float = Field(0.5, ge=0)
    """Weight of the distance from the student's own row, for tokens that the student has (0.5)."""
    vocabulary_size: int = Field(4096, gt=256)
    """Tokens of a sampled tokenizer, 256 single bytes included (32,768)."""
    tokenizer_texts: int = Field(256, ge=1)
    """Stretches of text, each ``8 * window_tokens`` characters long, that a sampled tokenizer is made from (2,048)."""
    batch_windows: int = Field(8, ge=1)
    """The first so many of those texts are what the model reads in the step (128)."""
    window_tokens: int = Field(128, ge=8)
    """Tokens of a text that the model reads (128)."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate of AdamW (6e-5 with 128 windows a step)."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up from zero."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes to zero after the warm-up."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay (0.01)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's running-average coefficients (0.9, 0.95)."""
    clip_norm: float = Field(0.1, gt=0)
    """Largest global gradient norm (0.1)."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Compute type of the student; the network itself is float32."""
    seed: int = Field(0, ge=0)
    """Seeds the network, the texts and the tokenizers; default: the recipe's seed."""
    checkpoint_every: int = not_keyed(100, ge=1)
    """Steps between checkpoints; one is also written when the run is asked to stop."""
    keep_checkpoints: int = not_keyed(2, ge=1)
    """How many complete checkpoints stay on disk; older ones are the fallback when the newest is damaged."""
    log_every: int = not_keyed(5, ge=1)
    """Steps between lines of progress and points of the training curve."""

    @model_validator(mode="after")
    def _consistent(self) -> HypernetConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})")
        if self.batch_windows > self.tokenizer_texts:
            raise ValueError(
                f"batch_windows ({self.batch_windows}) are taken from tokenizer_texts ({self.tokenizer_texts}), so "
                "they cannot be more"
            )
        return self
