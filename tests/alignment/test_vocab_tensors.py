"""The vocabulary tensors of a model, from the names and shapes that real architectures have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    FalconConfig,
    Gemma3nTextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from alignment.vocab_tensors import VocabTensorError, padded_rows, read_vocab_tensors, vocab_tensors

ROWS = 57
LLAMA = {
    "model.embed_tokens.weight": (ROWS, 8),
    "model.norm.weight": (8,),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
}
CONFIG = {"vocab_size": ROWS, "hidden_size": 8, "intermediate_size": 16}


def roles(shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> dict[str, str]:
    return {tensor.name: tensor.role for tensor in vocab_tensors(shapes, config).tensors}


def test_a_head_that_is_not_stored_is_tied() -> None:
    for config in (CONFIG, CONFIG | {"tie_word_embeddings": True}):
        found = vocab_tensors(LLAMA, config)
        assert [(tensor.name, tensor.role) for tensor in found.tensors] == [("model.embed_tokens.weight", "input")]
        assert (found.tied, found.matrix_rows) == (True, ROWS)


@pytest.mark.parametrize(
    ("says", "tied"), [({}, False), ({"tie_word_embeddings": False}, False), ({"tie_word_embeddings": True}, True)]
)
def test_a_head_that_is_stored_is_its_own_unless_the_configuration_ties_it(says: dict[str, bool], tied: bool) -> None:
    found = vocab_tensors(LLAMA | {"lm_head.weight": (ROWS, 8)}, CONFIG | says)
    head, embedding = found.tensors
    assert (head.role, embedding.role, found.tied) == ("output", "input", tied)
    assert head.tied_to == ("model.embed_tokens.weight" if tied else None)
    assert embedding.tied_to is None


def test_biases_per_layer_embeddings_and_unknown_tables_have_their_role() -> None:
    shapes = LLAMA | {
        "lm_head.weight": (ROWS, 8),
        "lm_head.bias": (ROWS,),
        "final_logits_bias": (1, ROWS),
        "model.embed_tokens_per_layer.weight": (50, 12),
        "mtp.embed_tokens.weight": (ROWS, 8),
        "model.layers.0.hash_table.weight": (3, ROWS),
        "model.layers.0.gate": (ROWS,),
    }
    assert roles(shapes, CONFIG | {"vocab_size_per_layer_input": 50}) == {
        "model.embed_tokens.weight": "input",
        "lm_head.weight": "output",
        "lm_head.bias": "bias",
        "final_logits_bias": "bias",
        "model.embed_tokens_per_layer.weight": "per_layer_input",
        "mtp.embed_tokens.weight": "other",
        "model.layers.0.hash_table.weight": "other",
        "model.layers.0.gate": "other",
    }


def test_the_language_model_of_a_multimodal_one_is_looked_into() -> None:
    config = {"vision_config": {"vocab_size": 8}, "text_config": CONFIG, "tie_word_embeddings": False}
    shapes = {"language_model.model.embed_tokens.weight": (ROWS, 8), "language_model.lm_head.weight": (ROWS, 8)}
    found = vocab_tensors(shapes, config)
    assert (len(found.tensors), found.tied) == (2, False)


def small(config_class: type[PretrainedConfig], **options: Any) -> PretrainedConfig:
    return config_class(
        **{"vocab_size": ROWS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2} | options
    )


PER_LAYER = {
    "vocab_size_per_layer_input": 60,
    "hidden_size_per_layer_input": 8,
    "intermediate_size": 32,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_kv_shared_layers": 0,
    "laurel_rank": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "activation_sparsity_pattern": [0.0, 0.0],
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (small(LlamaConfig, intermediate_size=32), ["input", "output"]),
        (small(GPT2Config), ["input"]),
        (small(PhiConfig, intermediate_size=32), ["bias", "input", "output"]),
        (small(GPTJConfig, rotary_dim=4), ["bias", "input", "output"]),
        (small(GPTNeoXConfig, intermediate_size=32), ["input", "output"]),
        (small(BloomConfig), ["input"]),
        (small(FalconConfig), ["input"]),
        (small(OPTConfig, ffn_dim=32, word_embed_proj_dim=16), ["input"]),
        (small(MambaConfig), ["input"]),
        (small(BertConfig, intermediate_size=32, is_decoder=True), ["bias", "input"]),
        (small(Gemma3nTextConfig, **PER_LAYER), ["input", "per_layer_input"]),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_transformers_itself_takes_for_input_and_output_is_found(
    config: PretrainedConfig, expected: list[str], tmp_path: Path
) -> None:
    with torch.device("meta"):
        model = BertLMHeadModel(config) if isinstance(config, BertConfig) else AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # each once, as stored
    found = vocab_tensors(shapes, json.loads(config.to_json_string(use_diff=False)))
    assert sorted(tensor.role for tensor in found.tensors) == expected
    by_role = {tensor.role: tensor for tensor in found.tensors}
    assert by_role["input"].name == name_of(model, model.get_input_embeddings().weight)
    assert found.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    if not found.tied:
        assert by_role["output"].name == name_of(model, model.get_output_embeddings().weight)


def name_of(model: PreTrainedModel, parameter: torch.Tensor) -> str:
    return next(name for name, each in model.named_parameters() if each is parameter)


def test_a_width_that_equals_the_vocabulary_is_refused_only_where_it_matters() -> None:
    config = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "max_position_embeddings": 16}
    embedding = {"model.embed_tokens.weight": (16, 8)}
    assert roles(embedding, config) == {"model.embed_tokens.weight": "input"}
    ambiguous = embedding | {"model.layers.0.mlp.up_proj.weight": (16, 8)}
    with pytest.raises(
        VocabTensorError, match=r"up_proj\.weight \(16, 8\) may .*`intermediate_size` in config\.json is 16"
    ):
        vocab_tensors(ambiguous, config)


@pytest.mark.parametrize(
    ("shapes", "config", "complaint"),
    [
        (LLAMA, {"hidden_size": 8}, "no `vocab_size`"),
        (LLAMA, CONFIG | {"vocab_size": 99}, "no tensor with a dimension of 99 .* found none at all"),
        ({"lm_head.weight": (ROWS, 8)}, CONFIG, r"has the name of an input embedding; found \['lm_head.weight'\]"),
        (LLAMA, CONFIG | {"tie_word_embeddings": False}, "no output matrix is stored"),
        (LLAMA | {"visual.embeddings.weight": (ROWS, 4)}, CONFIG, "several tensors .* the input matrix: .*visual"),
    ],
)
def test_what_cannot_be_told_is_refused(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(VocabTensorError, match=complaint):
        vocab_tensors(shapes, config)


def test_a_directory_is_read_from_the_headers_of_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    save_file(
        {"model.embed_tokens.weight": torch.zeros(ROWS, 8, dtype=torch.bfloat16)}, tmp_path / "model-1-of-2.safetensors"
    )
    save_file({"lm_head.weight": torch.zeros(ROWS, 8)}, tmp_path / "model-2-of-2.safetensors")
    found = read_vocab_tensors(tmp_path)
    assert json.loads(json.dumps(found.to_json())) == {
        "matrix_rows": ROWS,
        "tied": False,
        "tensors": [
            {"name": "lm_head.weight", "role": "output", "shape": [ROWS, 8], "tied_to": None},
            {"name": "model.embed_tokens.weight", "role": "input", "shape": [ROWS, 8], "tied_to": None},
        ],
    }


def test_a_model_as_it_is_saved_is_read(
    tiny_model_dir: Callable[..., Path], tiny_tokenizer_dirs: tuple[Path, Path]
) -> None:
    for tied in (True, False):
        found = read_vocab_tensors(tiny_model_dir(tiny_tokenizer_dirs[0], tied=tied))
        assert (found.tied, len(found.tensors)) == (tied, 1 if tied else 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", b"{"), ("model.safetensors", b"\x10\0\0\0\0\0\0\0{"), ("config.json", b'{"hidden_size": 8}')],
)
def test_a_damaged_directory_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VocabTensorError, match=str(tmp_path)):
        read_vocab_tensors(tmp_path)


@pytest.mark.parametrize(
    ("size", "multiple", "rows"),
    [
        (151_665, 64, 151_680),
        (151_665, 128, 151_680),
        (128_256, 128, 128_256),
        (32_001, 64, 32_064),
        (50_257, 128, 50_304),
        (50_257, 1, 50_257),
    ],
)
def test_rows_are_padded_as_in_the_specification(size: int, multiple: int, rows: int) -> None:
    """The tested values of embedding_init.md §0.6."""
    assert padded_rows(size, multiple) == rows
