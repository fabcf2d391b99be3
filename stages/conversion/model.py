"""Any model, whatever files it comes in, as safetensors that ``AutoModelForCausalLM`` loads."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stages.artifacts import ArtifactError
from stages.conversion.custom_code import refuse_model_code
from stages.conversion.errors import ConversionError
from stages.conversion.gguf import model_from_gguf
from stages.model_loading import load_causal_lm, modeling_file
from stages.shard_index import shard_names

SHARD_INDEX = "model.safetensors.index.json"
CONFIG_FILES = ("config.json", "generation_config.json")
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"


def write_model(source: Path, directory: Path) -> None:
    """Write the model of ``source`` into ``directory``.

    Safetensors files are copied byte for byte: a link would let a later edit of the source change what was
    published. GGUF and pickled weights are loaded, checked and saved in bfloat16 and their own dtype. Of a pickle
    tensors alone are read (torch's ``weights_only``), so that nothing in it can be run.

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
    elif (source / PICKLED_FILE).is_file() or _indexed(source / PICKLED_INDEX):
        _save(source, _from_pickle(source), directory)
    else:
        found = ", ".join(sorted(path.name for path in source.iterdir() if path.is_file()))
        raise ConversionError(f"{source}: no model.safetensors, {SHARD_INDEX} or pytorch_model.bin among {found}")


def embedding_rows(directory: Path) -> int:
    """Rows of the input embedding of the model in ``directory``; no weight is read.

    Raises:
        ConversionError: the config names no causal language model that transformers knows.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (KeyError, OSError, ValueError) as error:
        raise ConversionError(f"{directory / 'config.json'}: not a causal language model: {error}") from None
    return model.get_input_embeddings().weight.shape[0]


def _shards(source: Path) -> list[str]:
    """Names of the safetensors files (with their index) that transformers would load; empty if there are none."""
    if (source / "model.safetensors").is_file():
        return ["model.safetensors"]
    shards = _indexed(source / SHARD_INDEX)
    return [SHARD_INDEX, *shards] if shards else []


def _indexed(index: Path) -> list[str]:
    """The weight files that an index names; empty if there is no index."""
    try:
        return shard_names(index) if index.is_file() else []
    except ArtifactError as error:
        raise ConversionError(str(error)) from None


def _from_pickle(source: Path) -> torch.nn.Module:
    try:
        return load_causal_lm(source, weights_only=True, use_safetensors=False)
    except pickle.UnpicklingError:
        # torch's own message recommends to load it all the same
        raise ConversionError(
            f"{source}: its pickled weights are damaged, or hold more than tensors, which may be any program: nothing "
            "of it was run. Take a copy of the model with safetensors"
        ) from None


def _save(source: Path, model: torch.nn.Module, directory: Path) -> None:
    broken = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        raise ConversionError(f"{source}: weights that are not finite: {', '.join(broken[:5])}")
    model.save_pretrained(directory)
