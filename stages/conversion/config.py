"""A model's configuration, whatever file it comes in; no weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import AutoConfig

from stages.conversion.errors import ConversionError


def write_config(source: Path, directory: Path) -> int | None:
    """Write the configuration of the model in ``source`` as ``directory/config.json``.

    Args:
        source: a Hugging Face model directory, with or without weights, or a ``*.gguf`` file.
        directory: where it goes.

    Returns:
        Rows of the input embedding according to the configuration; None if it does not say.

    Raises:
        ConversionError: the source has no configuration.
    """
    if source.suffix == ".gguf" and source.is_file():
        config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
        config.save_pretrained(directory)
    elif (source / "config.json").is_file():
        shutil.copyfile(source / "config.json", directory / "config.json")
    else:
        raise ConversionError(f"{source}: not a model: expected a directory with a config.json or a *.gguf file")
    return _embedding_rows(directory / "config.json")


def _embedding_rows(path: Path) -> int | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{path}: not JSON: {error}") from None
    # Models of several modalities keep their language model's part under a key of its own.
    text = values.get("text_config")
    return (text if isinstance(text, dict) else values).get("vocab_size")
