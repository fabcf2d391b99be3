"""Any model, whatever files it comes in, as safetensors that ``AutoModelForCausalLM`` loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stages.conversion.custom_code import refuse_model_code
from stages.conversion.errors import ConversionError
from stages.conversion.gguf import model_from_gguf
from stages.model_loading import load_causal_lm, modeling_file

SHARD_INDEX = "model.safetensors.index.json"
CONFIG_FILES = ("config.json", "generation_config.json")
PICKLED_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def write_model(source: Path, directory: Path) -> None:
    """Write the model of ``source`` into ``directory``.

    Safetensors files are copied byte for byte: a link would let a later edit of the source change what was
    published. GGUF and pickled weights are loaded, checked and saved in bfloat16 and their own dtype.

    Args:
        source: a Hugging Face model directory or a ``*.gguf`` file.
        directory: where it goes.

    Raises:
        ConversionError: the source holds no model that can be read, or one whose weights are not finite.
    """
    if source.is_file():
        if source.suffix != ".gguf":
            raise ConversionError(f"{source}: not a model; expected a directory or a *.gguf file")
        _save(source, model_from_gguf(source), directory)
        return
    if not (source / "config.json").is_file():
        raise ConversionError(f"{source}: not a model directory: config.json is missing")
    refuse_model_code(source)
    code = modeling_file(source)
    shards = _shards(source)
    if shards:
        directory.mkdir(parents=True, exist_ok=True)
        for name in (*CONFIG_FILES, *shards):
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
        if code is not None:
            shutil.copyfile(code, directory / code.name)
    elif any((source / name).is_file() for name in PICKLED_FILES):
        _save(source, load_causal_lm(source), directory)
    else:
        found = ", ".join(sorted(path.name for path in source.iterdir() if path.is_file()))
        raise ConversionError(f"{source}: no model.safetensors, {SHARD_INDEX} or pytorch_model.bin among {found}")


def embedding_rows(directory: Path) -> int:
    """Rows of the input embedding of the model in ``directory``; no weight is read.

    Raises:
        ConversionError: the config names no causal language model that transformers knows.
    """
    try:
        config = AutoConfig.from_pretrained(directory)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (KeyError, OSError, ValueError) as error:
        raise ConversionError(f"{directory / 'config.json'}: not a causal language model: {error}") from None
    return model.get_input_embeddings().weight.shape[0]


def _shards(source: Path) -> list[str]:
    """Names of the safetensors files (with their index) that transformers would load; empty if there are none."""
    if (source / "model.safetensors").is_file():
        return ["model.safetensors"]
    index = source / SHARD_INDEX
    if not index.is_file():
        return []
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    missing = [name for name in shards if not (source / name).is_file()]
    if missing:
        raise ConversionError(f"{index}: names files that are missing: {', '.join(missing)}")
    return [SHARD_INDEX, *shards]


def _save(source: Path, model: torch.nn.Module, directory: Path) -> None:
    broken = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        raise ConversionError(f"{source}: weights that are not finite: {', '.join(broken[:5])}")
    model.save_pretrained(directory)
