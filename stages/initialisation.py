"""A model with another vocabulary: new rows for its embedding matrices, everything else as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from alignment.vocab_tensors import padded_rows
from stages.stage import StageError

MakeRows = Callable[[Tensor], Tensor]
"""Source rows [V_source, D] -> target rows [V_target, D]."""


@dataclass(frozen=True)
class VocabularyTensors:
    """The parameters of a model that have a row for each token.

    Attributes:
        embedding: the input matrix [V, D].
        head: the output matrix [V, D]; the same parameter as ``embedding`` in a tied model.
        bias: the output bias [V], if the model has one.
    """

    embedding: nn.Parameter
    head: nn.Parameter
    bias: nn.Parameter | None

    @property
    def tied(self) -> bool:
        """Whether input and output are one matrix."""
        return self.embedding is self.head

    @property
    def distinct(self) -> list[nn.Parameter]:
        """Each parameter once."""
        return list({id(p): p for p in (self.embedding, self.head, self.bias) if p is not None}.values())

    @property
    def digest(self) -> str:
        """sha256 of the bytes of all distinct parameters."""
        digest = hashlib.sha256()
        for parameter in self.distinct:
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def vocabulary_tensors(model: PreTrainedModel) -> VocabularyTensors:
    """The input matrix, the output matrix and the output bias of a causal language model.

    Raises:
        StageError: other tensors of the model also depend on the vocabulary; names them.
    """
    head = model.get_output_embeddings()
    tensors = VocabularyTensors(model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None))
    known = {id(parameter) for parameter in tensors.distinct}
    own = _named_tensors(model)
    others = sorted(name for name in _shapes_by_vocabulary(model) if name in own and id(own[name]) not in known)
    if others:
        listing = ", ".join(f"{name} {tuple(own[name].shape)}" for name in others)
        raise StageError(
            f"{type(model).__name__} has tensors that depend on the vocabulary besides its embeddings and its head: "
            f"{listing}. Only the embedding matrices and the head's bias can be given a new vocabulary: use a student "
            "without such tensors."
        )
    return tensors


def replace_rows(model: PreTrainedModel, make_rows: MakeRows, *, multiple: int = 1) -> VocabularyTensors:
    """Give ``model`` the rows that ``make_rows`` makes of its present ones; a tied model stays tied.

    The number of rows is rounded up to a multiple of ``multiple``. Padding rows are the mean of the new rows: zero rows
    would have logit 0, which beats real tokens with negative logits (embedding_init.md §0.6).

    Raises:
        StageError: other tensors of the model also depend on the vocabulary.
    """
    tensors = vocabulary_tensors(model)
    # In place, so that whatever shares a parameter goes on sharing it.
    for parameter in tensors.distinct:
        rows = parameter.data.reshape(len(parameter), -1)
        parameter.data = _padded(make_rows(rows), multiple).reshape(-1, *parameter.shape[1:])
    matrix_rows = len(tensors.embedding)
    model.get_input_embeddings().num_embeddings = model.get_output_embeddings().out_features = matrix_rows
    model.config.get_text_config().vocab_size = matrix_rows
    return tensors


def set_special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the model's and the generation configuration name the tokenizer's special ids, None where it has none."""
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        for role in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
            if hasattr(config, role):
                setattr(config, role, getattr(tokenizer, role))


def _padded(rows: Tensor, multiple: int) -> Tensor:
    missing = padded_rows(len(rows), multiple) - len(rows)
    mean = rows.to(torch.promote_types(rows.dtype, torch.float32)).mean(dim=0, keepdim=True).to(rows.dtype)
    return torch.cat([rows, mean.expand(missing, -1)])


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _shapes_by_vocabulary(model: PreTrainedModel) -> set[str]:
    """Names of the tensors whose shape follows a vocabulary size of the configuration.

    Found by building the model's skeleton again with every ``vocab_size*`` one larger, because a dimension that merely
    equals the vocabulary size proves nothing.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    text_config = config.get_text_config()
    for key, value in text_config.to_dict().items():
        if key.startswith("vocab_size") and isinstance(value, int):
            setattr(text_config, key, value + 1)
    with torch.device("meta"):
        larger = _named_tensors(AutoModelForCausalLM.from_config(config))
    own = _named_tensors(model)
    return {name for name, tensor in larger.items() if name in own and own[name].shape != tensor.shape}
