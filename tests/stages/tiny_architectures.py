"""Random models of a few architectures whose vocabulary tensors differ: in names, ties, biases and extra tables."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    Gemma3Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.gemma3n import Gemma3nTextConfig

ROWS = 96
PER_LAYER_ROWS = 90
"""Neither is a width of these models."""

_SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def config(architecture: str, rows: int = ROWS, per_layer_rows: int = PER_LAYER_ROWS) -> PretrainedConfig:
    """The configuration of a tiny model with ``rows`` rows; ``per_layer_rows`` is Gemma-3n's."""
    small = {"vocab_size": rows, **_SMALL, **_ENDS}
    match architecture:
        case "llama-tied" | "llama-untied":
            return LlamaConfig(**small, tie_word_embeddings=architecture == "llama-tied")
        case "gpt2":
            return GPT2Config(vocab_size=rows, n_embd=16, n_layer=1, n_head=2, **_ENDS)
        case "gpt-neox" | "gpt-neox-tied":
            return GPTNeoXConfig(**small, tie_word_embeddings=architecture == "gpt-neox-tied")
        case "phi":
            return PhiConfig(**small)
        case "bert":
            return BertConfig(**small, is_decoder=True)
        case "gemma3":
            vision = {**_SMALL, "image_size": 28, "patch_size": 14}
            return Gemma3Config(
                text_config={**small, "num_key_value_heads": 1, "head_dim": 8}, vision_config=vision, **_ENDS
            )
        case "gemma3n":
            return Gemma3nTextConfig(
                **small | {"num_hidden_layers": 2},
                vocab_size_per_layer_input=per_layer_rows,
                num_key_value_heads=1,
                head_dim=8,
                hidden_size_per_layer_input=8,
                num_kv_shared_layers=0,
                laurel_rank=4,
                layer_types=["sliding_attention", "full_attention"],
                activation_sparsity_pattern=[0.0, 0.0],
            )
    raise ValueError(architecture)


def save_model(
    architecture: str, directory: Path, *, dtype: torch.dtype = torch.float32, shard_size: str = "5GB"
) -> PreTrainedModel:
    """Save a random model, every parameter of which differs from zero, and return it."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config(architecture)).to(dtype).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape).mul(0.3).to(dtype)
    model.save_pretrained(directory, max_shard_size=shard_size)
    return model
