"""A teacher and a student with random weights, made from configurations and a text alone.

Speed does not depend on what a model knows, but it does on how long its tokens are. So the tokenizers are byte-level
BPE, trained on the text, and filled up with joined tokens to the vocabulary size that is asked for.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; ``gemma`` has its norms, its head width and its wide vocabulary, else it is Llama's."""

    vocab_size: int
    layers: int
    width: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_width: int
    gemma: bool = False

    def scaled(self, layers: int | None, width: int | None) -> Shape:
        """The same kind of model with another number of layers, or another width with everything in proportion."""
        share = 1.0 if width is None else width / self.width
        heads = max(1, round(self.heads * share))
        return Shape(
            vocab_size=self.vocab_size,
            layers=layers or self.layers,
            width=width or self.width,
            feed_forward=max(8, round(self.feed_forward * share)),
            heads=heads,
            key_value_heads=max(1, min(self.key_value_heads, heads)) if heads % self.key_value_heads == 0 else 1,
            head_width=self.head_width,
            gemma=self.gemma,
        )

    def config(self, window_tokens: int) -> PretrainedConfig:
        kind = Gemma3TextConfig if self.gemma else LlamaConfig
        return kind(
            vocab_size=self.vocab_size,
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            head_dim=self.head_width,
            max_position_embeddings=max(2048, window_tokens),
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )


LLAMA_1B = Shape(128_256, layers=16, width=2048, feed_forward=8192, heads=32, key_value_heads=8, head_width=64)
"""Of the size of Llama 3.2 1B."""
GEMMA_1B = Shape(262_144, 26, width=1152, feed_forward=6912, heads=4, key_value_heads=1, head_width=256, gemma=True)
"""Of the size of Gemma 3 1B."""
SMALL_TEACHER = Shape(32_000, layers=6, width=384, feed_forward=1024, heads=6, key_value_heads=6, head_width=64)
SMALL_STUDENT = Shape(48_000, layers=6, width=384, feed_forward=1024, heads=6, key_value_heads=6, head_width=64)


def write_model(shape: Shape, texts: Sequence[str], window_tokens: int, directory: Path, seed: int) -> Path:
    """Write a model with random bf16 weights and its tokenizer; returns ``directory``."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(shape.config(window_tokens), dtype=torch.bfloat16)
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(texts, shape.vocab_size), eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    ).save_pretrained(directory)
    return directory


def byte_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of exactly ``vocab_size`` tokens, trained on ``texts`` as far as they go."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=[END_OF_TEXT], show_progress=False
    )
    state = json.loads(trained._tokenizer.to_str())
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    known = [token for token in vocabulary if token != END_OF_TEXT]
    for left, right in itertools.product(known, known):
        if len(vocabulary) >= vocab_size:
            break
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append([left, right])
    return Tokenizer.from_str(json.dumps(state))
