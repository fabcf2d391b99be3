"""Models and tokenizers of GGUF files."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast


def tokenizer_from_gguf(path: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer that a GGUF file carries."""
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)


def model_from_gguf(path: Path) -> PreTrainedModel:
    """Load a GGUF file's weights, dequantised to bfloat16, as a model that can be saved as any other."""
    loaded = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # A model that came from GGUF stays marked as quantised and refuses to be saved, so its weights move to one that
    # never was; strict loading proves that every one of them is there, dense and of the right shape.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model
