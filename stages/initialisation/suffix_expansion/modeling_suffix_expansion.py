"""A causal language model that reads bytes, and at each of them the longest token of an older vocabulary ending there.

The embedding of the byte at position t is ``E[byte t] + E_old[token]``, where ``token`` is the longest token of the
older vocabulary that the bytes up to and including t end with (arXiv 2503.20083, on the transfer to bytes). No such
token reaches back over a special token, over padding or over the start of the sequence. The output head knows nothing
of it.

This file is saved with the model and needs torch and transformers alone::

    AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)

Without ``trust_remote_code`` transformers loads the model without the older vocabulary, reports the ``expansion``
tensors as unexpected, and the model reads its input badly.

Legend: B sequences, T positions, D width, V bytes and special tokens, N tokens of the older vocabulary, M nodes.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NO_BYTE = -1
"""Stands for a special token, for padding and for what lies before the start."""

_BRANCHING = 256


def longest_suffixes(bytes_read: Tensor, edges: Tensor, tokens: Tensor, positions: int) -> Tensor:
    """The longest token that ends at each of the last positions, exactly.

    Args:
        bytes_read: int64 [B, T], a byte or ``NO_BYTE``; tokens end before a ``NO_BYTE``, walking back.
        edges: int64 [M - 1], ascending: ``256 * node + byte`` for each edge of the trie of the reversed tokens. The
            edge at index i leads to node i + 1; node 0 is the root.
        tokens: int64 [M], the longest token whose reversed bytes lead to the node or to one above it; -1 for none.
        positions: how many positions, at the end, to look at; the others are only walked back over.

    Returns:
        int64 [B, positions]; -1 where no token ends.
    """
    # The column in front stops every walk before it gets into the sequence above.
    flat = nn.functional.pad(bytes_read, (1, 0), value=NO_BYTE).flatten()
    last = torch.arange(flat.numel(), device=flat.device).view(len(bytes_read), -1)[:, -positions:].flatten()
    node = torch.zeros_like(last)
    walking = (flat[last] != NO_BYTE).nonzero().squeeze(1)
    steps = 0
    while len(walking):
        wanted = node[walking] * _BRANCHING + flat[last[walking] - steps]
        edge = torch.searchsorted(edges, wanted).clamp(max=len(edges) - 1)
        found = edges[edge] == wanted
        walking = walking[found]
        node[walking] = edge[found] + 1
        steps += 1
        walking = walking[flat[last[walking] - steps] != NO_BYTE]
    return tokens[node].view(len(bytes_read), positions)


class SuffixExpansion(nn.Module):
    """Mixed into the class of a model's input embedding: adds the embedding of the longest suffix.

    Attributes:
        expansion: the embedding of the older vocabulary, N rows, of the same kind as the one that it is added to.
        expansion_edges, expansion_tokens: the trie of its reversed tokens, as in ``longest_suffixes``.
        expansion_bytes: int64 [V], the byte that each id is; ``NO_BYTE`` for special tokens and rows without a token.
        suffixes: int64 [B, T], what ``find`` would give at the positions of the next call, if more is known than the
            call's ids; else None.
    """

    suffixes: Tensor | None

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings [B, T, D] of ids [B, T]."""
        tokens = self.find(input_ids) if self.suffixes is None else self.suffixes
        added = self.expansion(tokens.clamp(min=0)).masked_fill((tokens < 0)[..., None], 0)
        return super().forward(input_ids) + added

    def find(self, input_ids: Tensor, attention_mask: Any = None, positions: int | None = None) -> Tensor:
        """The longest tokens that end at the last ``positions`` of ids [B, T], at all by default; see above."""
        bytes_read = self.expansion_bytes[input_ids]
        if isinstance(attention_mask, Tensor) and attention_mask.shape == input_ids.shape:
            bytes_read = bytes_read.masked_fill(attention_mask == 0, NO_BYTE)
        positions = input_ids.shape[1] if positions is None else positions
        return longest_suffixes(bytes_read, self.expansion_edges, self.expansion_tokens, positions)


def expand_embedding(embedding: nn.Embedding, *, tokens: int, nodes: int) -> None:
    """Make room in ``embedding`` for an older vocabulary of so many tokens, with a trie of so many nodes."""
    rows = nn.Parameter(embedding.weight.new_zeros(tokens, embedding.embedding_dim))
    # A copy with other rows: some models scale what their embedding gives.
    expansion = copy.deepcopy(embedding, {id(embedding.weight): rows})
    expansion.num_embeddings, expansion.padding_idx = tokens, None
    embedding.expansion = expansion
    device = embedding.weight.device
    for name, size in {"edges": nodes - 1, "tokens": nodes, "bytes": embedding.num_embeddings}.items():
        values = torch.full((size,), NO_BYTE, dtype=torch.int64, device=device)
        embedding.register_buffer(f"expansion_{name}", values)
    embedding.suffixes = None
    embedding.__class__ = type("SuffixExpandedEmbedding", (SuffixExpansion, type(embedding)), {})


@functools.cache
def _expanded_class(base: type[transformers.PreTrainedModel]) -> type[transformers.PreTrainedModel]:
    """The class ``base`` with an expanded input embedding."""
    arguments = inspect.signature(base.forward)

    class Expanded(base):
        _auto_class = "AutoModelForCausalLM"  # makes save_pretrained copy this file

        @classmethod
        def is_custom_code(cls) -> bool:
            """No: custom code is expected to store weights in another way than the class that it takes after."""
            return False

        def __init__(self, config: transformers.PretrainedConfig, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            expand_embedding(self.get_input_embeddings(), **config.suffix_expansion)

        @functools.wraps(base.forward)
        def forward(self, *args: Any, suffixes: Tensor | None = None, **kwargs: Any) -> Any:
            embedding = self.get_input_embeddings()
            given = arguments.bind_partial(self, *args, **kwargs).arguments
            if suffixes is None and given.get("input_ids") is not None:
                _require_history(given.get("past_key_values"), given["input_ids"], 0)
                suffixes = embedding.find(given["input_ids"], given.get("attention_mask"))
            embedding.suffixes = suffixes
            try:
                return super().forward(*args, **kwargs)
            finally:
                embedding.suffixes = None

        @functools.wraps(base.prepare_inputs_for_generation)
        def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
            inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
            new = inputs.get("input_ids")
            if new is not None:
                _require_history(inputs.get("past_key_values"), new, input_ids.shape[1] - new.shape[1])
                inputs["suffixes"] = self.get_input_embeddings().find(
                    input_ids, kwargs.get("attention_mask"), new.shape[1]
                )
            return inputs

    # Not a name of its own: transformers knows by it how the weights of some architectures are stored.
    Expanded.__name__ = Expanded.__qualname__ = base.__name__
    return Expanded


def _require_history(cache: Any, new: Tensor, known: int) -> None:
    """Refuse to look for the tokens that end at ``new`` ids [B, T] if less is known than the cache has seen."""
    seen = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
    if seen > known:
        raise ValueError(
            f"the cache holds {seen} positions, but only {known} ids before the {new.shape[1]} new ones are known: the "
            "input embedding of this model depends on the bytes before. Generate with generate(input_ids), without "
            "inputs_embeds and prefill_chunk_size; to go on from a cache yourself, pass "
            "suffixes=model.get_input_embeddings().find(all_ids, attention_mask, new_positions)"
        )


def __getattr__(name: str) -> type[transformers.PreTrainedModel]:
    """``LlamaForCausalLM`` is the class of that name with an expanded input embedding, and so are all others."""
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _expanded_class(getattr(transformers, name))
