"""Log-probabilities that a tokenizer itself gives to its tokens."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor


def unigram_log_probabilities(tokenizer: Path, vocab_size: int) -> Tensor:
    """float32 [V]: the scores of a Unigram tokenizer's directory; 0 for tokens without one and for other tokenizers."""
    scores = torch.zeros(vocab_size)
    file = tokenizer / "tokenizer.json"
    model = json.loads(file.read_text(encoding="utf-8"))["model"] if file.is_file() else {}
    if model.get("type") == "Unigram":
        own = torch.tensor([score for _, score in model["vocab"]])
        scores[: len(own)] = own[:vocab_size]
    return scores
