"""What a model weighs, found out from its ``config.json`` without loading it.

The model is built on the meta device, where tensors have a shape and no values, and the functions that choose what
trains choose there too. Activations are counted the same way: a forward pass of shapes, and the bytes of every tensor
that autograd keeps for the backward pass. For a Llama layer (width D, inner width F, H heads of width d, compute type
of e bytes, T tokens a row) these are, a token,

    2 D (4 + e) + 8     two RMS norms: input and inverse deviation in float32, normalised input
    + 2 D e             inputs of the attention's and of the MLP's first matrices
    + 4 H d e + 4 H     queries, keys, values and output of the attention (the output is its last matrix's input), and
                        one log-sum-exp a head: FlashAttention's (arXiv 2205.14135, section 3.1), no T x T scores
    + T e               the mask of a batch with padding
    + 4 F e             gate before and after its activation, its factor, and the last matrix's input

as in Korthikanti et al. (arXiv 2205.05198, section 4.1) without their dropout and score matrices. Other architectures
differ in norms, activations and dropout, and are counted by the same pass and not by a table.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from stages.model_loading import empty_causal_lm
from stages.training.adapters.layers import linear_layers
from stages.training.adapters.trained import choose_trained
from stages.training.config import TrainingConfig
from stages.training.models import DTYPES
from stages.training.optimiser import vocabulary_parameters
from stages.training.teachers.teacher_options import TeacherDtype

_COUNTED = "counted_attention"
"""The name under which transformers knows the stand-in for attention."""

_QUANTISED_BITS = {"int8": 8.0, "nf4": 4.127}
"""Bits a weight: of LLM.int8() without its few row scales, and of 4-bit NormalFloat with double quantisation (arXiv
2305.14314, section 3: 0.127 bits for the constants)."""


@dataclass(frozen=True)
class ModelMemory:
    """One model, as far as memory is concerned.

    Attributes:
        parameter_bytes: of all parameters, each tied one once, as they are held.
        parameters: their number.
        trained: number of those that train.
        vocabulary: number of those in the input embedding and the output head.
        vocabulary_trains: whether these train.
        output_rows: rows of the output matrix.
        width: of the hidden states.
        layers: number of decoder layers.
        itemsize: bytes of a number in the compute type.
        activations: bytes that autograd keeps of the body's forward pass of one micro-batch; None for a model that
            cannot be run on shapes alone.
    """

    parameter_bytes: int
    parameters: int
    trained: int
    vocabulary: int
    vocabulary_trains: bool
    output_rows: int
    width: int
    layers: int
    itemsize: int
    activations: int | None


def student_memory(directory: Path, config: TrainingConfig, rows: int, tokens: int) -> ModelMemory:
    """The student of a training stage, with micro-batches of ``rows`` rows of ``tokens`` tokens.

    Raises:
        StageError: a target of the adapter names no linear layer.
    """
    return _student_memory(directory, _what_matters(config), rows, tokens)


def _what_matters(config: TrainingConfig) -> TrainingConfig:
    """The options that count here, and no others, so that stages that differ in those share what was counted."""
    return TrainingConfig(steps=1, dtype=config.dtype, trainable=config.trainable, adapter=config.adapter)


@functools.lru_cache(maxsize=8)
def _student_memory(directory: Path, config: TrainingConfig, rows: int, tokens: int) -> ModelMemory:
    model = empty_causal_lm(directory).to(DTYPES[config.dtype])
    choose_trained(model, config)
    return _memory(model, sum(p.numel() * p.element_size() for p in model.parameters()), rows, tokens)


def trained_elements(directory: Path, config: TrainingConfig) -> int:
    """Number of a student's parameters that train, each tied one once; the objectives' own are not in it.

    Raises:
        StageError: a target of the adapter names no linear layer.
    """
    return _trained_elements(directory, _what_matters(config))


@functools.lru_cache(maxsize=8)
def _trained_elements(directory: Path, config: TrainingConfig) -> int:
    model = empty_causal_lm(directory)
    choose_trained(model, config)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@functools.lru_cache(maxsize=8)
def teacher_memory(directory: Path, dtype: TeacherDtype, rows: int, tokens: int) -> ModelMemory:
    """A teacher whose weights are held as ``dtype``, for micro-batches of ``rows`` rows of ``tokens`` tokens.

    Its ``activations`` are what training it would keep: nothing is kept in scoring, where one layer at a time works.
    """
    model = empty_causal_lm(directory).to(DTYPES.get(dtype, torch.bfloat16))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if dtype in _QUANTISED_BITS:
        weights = [layer.weight for layer in linear_layers(model).values()]
        size -= sum(w.numel() * w.element_size() for w in weights)
        size += round(sum(w.numel() for w in weights) * _QUANTISED_BITS[dtype] / 8)
    return _memory(model, size, rows, tokens)


@functools.lru_cache(maxsize=8)
@torch.no_grad()
def cache_memory(directory: Path, dtype: Literal["bf16", "fp32"], rows: int, tokens: int) -> int | None:
    """Bytes of the key-value cache of a model that has read and written ``rows`` rows of ``tokens`` tokens.

    Counted by a pass of shapes. Of a transformer these are ``2 n H d e`` a token, with n layers of H heads of keys and
    values of width d and e bytes a number (alone what a layer that looks back less far may keep less of). None for a
    model that cannot be run on shapes, or that keeps something else.
    """
    model = empty_causal_lm(directory).to(DTYPES[dtype]).eval()
    model.set_attn_implementation(_COUNTED)
    inputs = torch.empty(rows, tokens, model.config.get_text_config().hidden_size, dtype=model.dtype, device="meta")
    try:
        # Not ids: what some embeddings do with them depends on their values.
        cache = model.base_model(inputs_embeds=inputs, use_cache=True).past_key_values
        kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    except Exception:  # an architecture may look at values in any way; the plan says that it does not know
        return None
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


def _memory(model: nn.Module, parameter_bytes: int, rows: int, tokens: int) -> ModelMemory:
    config = model.config.get_text_config()
    vocabulary = vocabulary_parameters(model)
    return ModelMemory(
        parameter_bytes=parameter_bytes,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        vocabulary=sum(p.numel() for p in vocabulary),
        vocabulary_trains=any(p.requires_grad for p in vocabulary),
        output_rows=len(model.get_output_embeddings().weight),
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        itemsize=model.dtype.itemsize,
        activations=_kept_activations(model, rows, tokens),
    )


def _kept_activations(model: nn.Module, rows: int, tokens: int) -> int | None:
    model.set_attn_implementation(_COUNTED)
    model.train()
    embedding = vocabulary_parameters(model)[0]
    inputs = torch.empty(rows, tokens, model.config.get_text_config().hidden_size, dtype=model.dtype, device="meta")
    inputs.requires_grad_(embedding.requires_grad)
    attention = torch.ones(rows, tokens, dtype=torch.int64, device="meta")
    kept = KeptBytes(model)
    try:
        with kept.counting():
            # Not ids: what some embeddings do with them depends on their values.
            model.base_model(inputs_embeds=inputs, attention_mask=attention, use_cache=False)
    except Exception:  # an architecture may look at values in any way; the plan says that it does not know
        return None
    return kept.total


class KeptBytes:
    """Adds up the memory of all tensors that autograd keeps, beside ``model``'s own parameters and buffers.

    Attributes:
        total: bytes so far, each storage once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self._kept: list[Tensor] = []  # a freed storage's address could be another's

    def counting(self) -> torch.autograd.graph.saved_tensors_hooks:
        """The context within which tensors are counted."""
        return torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._kept.append(tensor)
            self.total += storage.nbytes()
        return tensor


class _Counted(torch.autograd.Function):
    """Attention that computes nothing and keeps what an attention without score matrices does."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:3], dtype=torch.float32), mask)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError("counted attention has no values")


def _counted_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **options: Any
) -> tuple[Tensor, None]:
    """The stand-in, as transformers calls it: query [B, H, T, d], key and value with one head for several queries."""
    if (groups := query.shape[1] // key.shape[1]) > 1:  # repeated in a batch with a mask
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    mask = query.new_empty(len(query), 1, query.shape[2], key.shape[2])
    return _Counted.apply(query, key, value, mask).transpose(1, 2).contiguous(), None


AttentionInterface.register(_COUNTED, _counted_attention)
AttentionMaskInterface.register(_COUNTED, lambda *arguments, **options: None)
