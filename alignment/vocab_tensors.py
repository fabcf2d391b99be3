"""The tensors of a model that have a row for each token, found from names and shapes without loading a weight.

A dimension that equals the vocabulary marks them (embedding_init.md §0.5); their names tell what they are for. A tensor
of unknown name proves nothing if some width of the model equals the vocabulary too: such a model is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

Role = Literal["input", "output", "bias", "per_layer_input", "other"]

_ROLES: tuple[tuple[Role, re.Pattern[str]], ...] = (
    ("other", re.compile(r"(^|\.)mtp\.|\.nextn\.|(^|\.)medusa")),
    ("bias", re.compile(r"(^|[._])bias$|logits_bias$")),
    ("per_layer_input", re.compile(r"per_layer[^.]*\.weight$")),
    ("output", re.compile(r"(^|\.)(lm_head|embed_out|output|output_layer|head|decoder)\.weight$")),
    (
        "input",
        re.compile(
            r"(^|\.)(embed_tokens|wte|word_embeddings?|embed_in|tok_embeddings|token_embd|embeddings?|shared|embedding)"
            r"\.weight$"
        ),
    ),
)
"""What a name says about a vocabulary tensor; the first that fits. Whatever fits none is ``other``."""


class VocabTensorError(ValueError):
    """The vocabulary tensors of a model cannot be told from its names, shapes and configuration."""


@dataclass(frozen=True)
class VocabTensor:
    """One stored tensor with a row for each token.

    Attributes:
        name: as in the weight files.
        role: what its rows are for.
        shape: in elements; one dimension is the vocabulary.
        tied_to: the name of the tensor that it repeats, for an output matrix stored beside the input it is tied to.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    tied_to: str | None = None


@dataclass(frozen=True)
class VocabTensors:
    """All vocabulary tensors of a model, by name.

    Attributes:
        tensors: the stored ones; a tied output matrix is usually not stored.
        matrix_rows: rows of the input matrix, padding included.
        tied: whether input and output are one matrix.
    """

    tensors: tuple[VocabTensor, ...]
    matrix_rows: int
    tied: bool

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"matrix_rows": self.matrix_rows, "tied": self.tied, "tensors": [asdict(each) for each in self.tensors]}


def padded_rows(tokenizer_size: int, multiple: int) -> int:
    """The number of matrix rows for a vocabulary, rounded up to a multiple (embedding_init.md §0.6)."""
    return -(-tokenizer_size // multiple) * multiple


def vocab_tensors(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> VocabTensors:
    """The vocabulary tensors among all tensors of a causal language model.

    Args:
        shapes: name of every stored tensor -> its shape.
        config: the content of ``config.json``; a multimodal model's ``text_config`` is looked into.

    Raises:
        VocabTensorError: the configuration has no vocabulary size; a tensor of unknown name has a dimension that may be
            the vocabulary or a width; or there is no input matrix, several, or no output matrix that should be there.
    """
    text_config = {**config, **config.get("text_config", {})}
    sizes = {key: value for key, value in text_config.items() if key.startswith("vocab_size") and value}
    if "vocab_size" not in sizes:
        raise VocabTensorError("config.json has no `vocab_size`: give the number of rows of the embedding matrix there")
    found = [
        VocabTensor(name, _role(name, shape), shape)
        for name, shape in sorted(shapes.items())
        if set(shape) & set(sizes.values())
    ]
    _refuse_ambiguity(found, text_config, sizes)
    source = _only(found, "input", sizes)
    if source is None:
        raise VocabTensorError(
            f"no tensor with a dimension of {sizes['vocab_size']} has the name of an input embedding; found "
            f"{[tensor.name for tensor in found] or 'none at all'}. Check `vocab_size` in config.json."
        )
    output = _only(found, "output", sizes)
    tied = text_config.get("tie_word_embeddings", output is None)
    if not tied and output is None:
        raise VocabTensorError("config.json says `tie_word_embeddings: false`, but no output matrix is stored")
    tensors = tuple(
        VocabTensor(tensor.name, tensor.role, tensor.shape, source.name if tied and tensor is output else None)
        for tensor in found
    )
    return VocabTensors(tensors, matrix_rows=source.shape[0], tied=bool(tied))


def read_vocab_tensors(model_dir: Path) -> VocabTensors:
    """``vocab_tensors`` of a Hugging Face model directory; reads ``config.json`` and the headers of its weight files.

    Raises:
        VocabTensorError: as ``vocab_tensors``, or a file is missing or damaged; names the directory.
    """
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        shapes = dict(_read_shapes(model_dir))
    except (OSError, ValueError, SafetensorError) as error:
        raise VocabTensorError(f"{model_dir} is no readable model: {error}") from None
    try:
        return vocab_tensors(shapes, config)
    except VocabTensorError as error:
        raise VocabTensorError(f"{model_dir}: {error}") from None


def _read_shapes(model_dir: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for path in sorted(model_dir.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, tuple(file.get_slice(name).get_shape())


def _refuse_ambiguity(found: list[VocabTensor], config: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Refuse a tensor of unknown name if its dimension may as well be a width that equals the vocabulary."""
    for tensor in found:
        sized = [size for size in sizes.values() if size in tensor.shape]
        width = next((key for key, value in config.items() if key not in sizes and value in sized), None)
        if tensor.role == "other" and width is not None:
            raise VocabTensorError(
                f"{tensor.name} {tensor.shape} may have a row for each token or not: `{width}` in config.json is "
                f"{config[width]}, which is the vocabulary size as well. Use a model in which the two differ."
            )


def _role(name: str, shape: tuple[int, ...]) -> Role:
    role = next((role for role, pattern in _ROLES if pattern.search(name)), "other")
    is_vector = sum(size > 1 for size in shape) <= 1  # BART keeps its final_logits_bias as [1, V]
    return role if (role == "bias") == is_vector else "other"


def _only(found: list[VocabTensor], role: Role, sizes: Mapping[str, int]) -> VocabTensor | None:
    tensors = [tensor for tensor in found if tensor.role == role and tensor.shape[0] == sizes["vocab_size"]]
    if len(tensors) > 1:
        listing = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in tensors)
        raise VocabTensorError(f"several tensors have the name and the shape of the {role} matrix: {listing}")
    return tensors[0] if tensors else None
