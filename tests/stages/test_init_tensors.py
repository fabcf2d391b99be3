"""The vocabulary tensors of a model directory: what they are for, where they are stored, what they are tied to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_architectures import PER_LAYER_ROWS, ROWS, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from stages.initialisation.tensors import VocabularyTensor, read_rows, stored_layout, vocabulary_tensors
from stages.stage import StageError

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
GPT2_INPUT = "transformer.wte.weight"
BERT_INPUT, BERT_BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    """Store other tensors in a model of one file."""
    file = directory / "model.safetensors"
    save_file(dict(change(load_file(file))), file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("llama-tied", [("input", INPUT, None), ("output", None, INPUT)]),
        ("llama-untied", [("input", INPUT, None), ("output", OUTPUT, None)]),
        ("gpt2", [("input", GPT2_INPUT, None), ("output", None, GPT2_INPUT)]),
        ("gpt-neox", [("input", "gpt_neox.embed_in.weight", None), ("output", "embed_out.weight", None)]),
        ("phi", [("input", INPUT, None), ("output", OUTPUT, None), ("bias", "lm_head.bias", None)]),
        (
            "bert",
            [
                ("input", BERT_INPUT, None),
                ("output", None, BERT_INPUT),
                ("bias", BERT_BIAS, None),
                ("bias", None, BERT_BIAS),
            ],
        ),
        (
            "gemma3",
            [
                ("input", "language_model.model.embed_tokens.weight", None),
                ("output", None, "model.language_model.embed_tokens.weight"),
            ],
        ),
        (
            "gemma3n",
            [
                ("input", INPUT, None),
                ("output", None, INPUT),
                ("per_layer_input", "model.embed_tokens_per_layer.weight", None),
            ],
        ),
    ],
)
def test_the_vocabulary_tensors_of_an_architecture(
    tmp_path: Path, architecture: str, expected: list[tuple[str, str | None, str | None]]
) -> None:
    model = save_model(architecture, tmp_path, dtype=torch.bfloat16)
    found = vocabulary_tensors(tmp_path)
    assert [(tensor.role, tensor.stored_name, tensor.tied_to) for tensor in found] == expected
    for tensor in found:
        rows = PER_LAYER_ROWS if tensor.role == "per_layer_input" else ROWS
        assert (tensor.matrix_rows, tensor.dimension, tensor.dtype) == (rows, 0, torch.bfloat16)
        assert model.state_dict()[tensor.name].shape == tensor.shape
        if tensor.stored_name:
            assert torch.equal(read_rows(tensor), model.state_dict()[tensor.name].reshape(rows, -1))


def test_tensors_of_a_sharded_model_are_found_in_their_files(tmp_path: Path) -> None:
    model = save_model("llama-untied", tmp_path, shard_size="8KB")
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weight_map.values())) > 2
    # Another project's copy of the weights, as Mistral ships it, is none of ours.
    save_file({"tok_embeddings.weight": torch.zeros(ROWS, 16)}, tmp_path / "consolidated.safetensors")
    for tensor in vocabulary_tensors(tmp_path):
        assert tensor.file == tmp_path / weight_map[tensor.stored_name]
        assert torch.equal(read_rows(tensor), model.state_dict()[tensor.name])


def test_names_without_the_base_models_prefix_are_found_as_transformers_finds_them(tmp_path: Path) -> None:
    save_model("gpt2", tmp_path)
    rewrite(tmp_path, lambda stored: {name.removeprefix("transformer."): value for name, value in stored.items()})
    source, output = vocabulary_tensors(tmp_path)
    assert (source.name, source.stored_name) == (GPT2_INPUT, "wte.weight")
    assert output.tied_to == GPT2_INPUT


@pytest.mark.parametrize("difference", [0.0, 1.0])
def test_a_stored_tied_output_is_tied_if_its_values_are_the_inputs(tmp_path: Path, difference: float) -> None:
    save_model("llama-tied", tmp_path)
    rewrite(tmp_path, lambda stored: stored | {OUTPUT: stored[INPUT] + difference})
    output = vocabulary_tensors(tmp_path)[1]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (output.tied_to == INPUT) == (loaded.lm_head.weight is loaded.model.embed_tokens.weight)
    assert (output.tied_to == INPUT) == (difference == 0)
    assert output.stored_name == OUTPUT


def test_a_tied_matrix_stored_under_the_name_of_the_output_alone_is_the_input(tmp_path: Path) -> None:
    model = save_model("llama-tied", tmp_path)
    rewrite(tmp_path, lambda stored: {OUTPUT if name == INPUT else name: value for name, value in stored.items()})
    source, output = vocabulary_tensors(tmp_path)
    assert (source.name, source.stored_name, output.stored_name, output.tied_to) == (INPUT, OUTPUT, None, INPUT)
    assert torch.equal(read_rows(source), model.model.embed_tokens.weight)


def test_a_head_that_transformers_drops_is_listed(tmp_path: Path) -> None:
    save_model("llama-untied", tmp_path)
    further = {"model.mtp.head.weight": torch.randn(ROWS, 16), "model.mtp.norm.weight": torch.randn(16)}
    rewrite(tmp_path, lambda stored: stored | further)
    *_, head = vocabulary_tensors(tmp_path)
    assert (head.role, head.stored_name, head.dimension) == ("other", "model.mtp.head.weight", 0)


def test_a_dropped_tensor_whose_width_equals_the_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    save_model("llama-untied", tmp_path)
    rewrite(tmp_path, lambda stored: stored | {"model.mtp.proj.weight": torch.randn(ROWS, ROWS)})
    with pytest.raises(StageError, match=r"model\.mtp\.proj\.weight \(96, 96\).*may have a row for each token or not"):
        vocabulary_tensors(tmp_path)


def test_a_known_tensor_whose_width_equals_the_vocabulary_is_none_of_it(tmp_path: Path) -> None:
    from transformers import PhiConfig, PhiForCausalLM

    widths = {"hidden_size": ROWS, "intermediate_size": ROWS}
    PhiForCausalLM(PhiConfig(vocab_size=ROWS, num_hidden_layers=1, num_attention_heads=2, **widths)).save_pretrained(
        tmp_path
    )
    assert [tensor.role for tensor in vocabulary_tensors(tmp_path)] == ["input", "output", "bias"]


def test_a_model_that_lacks_its_output_matrix_is_refused(tmp_path: Path) -> None:
    save_model("llama-untied", tmp_path)
    rewrite(tmp_path, lambda stored: {name: value for name, value in stored.items() if name != OUTPUT})
    with pytest.raises(StageError, match=r"stores no lm_head\.weight"):
        vocabulary_tensors(tmp_path)


def test_a_matrix_of_another_size_than_the_configuration_says_is_refused(tmp_path: Path) -> None:
    save_model("llama-tied", tmp_path)
    rewrite(tmp_path, lambda stored: stored | {INPUT: stored[INPUT][:50]})
    with pytest.raises(StageError, match=r"embed_tokens\.weight as \(50, 16\).*it is \(96, 16\)"):
        vocabulary_tensors(tmp_path)


def test_a_quantized_matrix_is_refused(tmp_path: Path) -> None:
    save_model("llama-tied", tmp_path)
    rewrite(tmp_path, lambda stored: stored | {INPUT: stored[INPUT].to(torch.float8_e4m3fn)})
    with pytest.raises(StageError, match=r"embed_tokens\.weight as F8_E4M3.*not quantized"):
        vocabulary_tensors(tmp_path)


@pytest.mark.parametrize(("shape", "dimension"), [((7,), 0), ((7, 3), 0), ((1, 7), 1), ((2, 7, 3), 1)])
def test_rows_and_layout_are_inverse(tmp_path: Path, shape: tuple[int, ...], dimension: int) -> None:
    stored = torch.randn(shape)
    save_file({"table": stored}, tmp_path / "model.safetensors")
    tensor = VocabularyTensor(
        *("table", "other", "vocab_size", shape, dimension, stored.dtype, "table", tmp_path / "model.safetensors")
    )
    rows = read_rows(tensor)
    assert rows.shape == (7, stored.numel() // 7)
    assert torch.equal(rows[2], stored.select(dimension, 2).flatten())
    assert torch.equal(stored_layout(tensor, rows), stored)
    longer = stored_layout(tensor, torch.cat([rows, rows[:2]]))
    assert torch.equal(longer.select(dimension, 8), stored.select(dimension, 1))
