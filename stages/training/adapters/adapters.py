"""Adapters in a student: frozen weights with trained low-rank updates, and the ordinary model they are merged into.

PEFT puts the updates into the model's own layers, so everything else in the engine sees an ordinary model with fewer
trainable parameters. Imported only where a recipe asks for an adapter: PEFT takes a second to import.

Legend: O outputs and I inputs of a linear layer, r rank.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.stage import StageError
from stages.training.adapters.adapter_options import Adapter
from stages.training.adapters.layers import linear_layers
from stages.training.optimiser import vocabulary_parameters
from stages.training.random import generator

_ADAPTER = "default"  # PEFT's name of the one adapter


def add_adapter(model: nn.Module, options: Adapter, seed: int) -> None:
    """Add an adapter to ``model``, in place, and freeze everything else but, by the options, the vocabulary's matrices.

    The model's output stays what it was, because B starts at zero.

    The matrices A are a function of ``seed`` and of the layers' order.

    Raises:
        StageError: a target names no linear layer, or the model has none.
    """
    layers = linear_layers(model)
    targets = _chosen(layers, options.targets)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.scale * options.rank,
        lora_dropout=options.dropout,
        use_dora=options.method == "dora",
        target_modules=targets,
        fan_in_fan_out=all(isinstance(layers[name], Conv1D) for name in targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed).integers(2**63)))
        inject_adapter_in_model(config, model)
    adapters = adapter_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapters)
    for parameter in vocabulary_parameters(model):
        parameter.requires_grad_(options.embeddings == "train")


def _chosen(layers: Mapping[str, nn.Module], targets: tuple[str, ...] | None) -> list[str]:
    """The names of the adapted layers, in the model's order."""
    if not layers:
        raise StageError("adapter: the student has no linear layer beside its output head")
    if targets is None:
        return list(layers)
    for target in targets:
        if not any(_ends_with(name, target) for name in layers):
            kinds = sorted({name.rpartition(".")[2] for name in layers})
            nearest = difflib.get_close_matches(target.rpartition(".")[2], kinds, n=1)
            raise StageError(
                f"adapter.targets: the student has no linear layer {target!r}"
                f"{f' (did you mean {nearest[0]!r}?)' if nearest else ''}; it has {', '.join(kinds)}. Embeddings and "
                "the output head take no adapter: they train whole with embeddings: train"
            )
    return [name for name in layers if any(_ends_with(name, target) for target in targets)]


def _ends_with(name: str, target: str) -> bool:
    """Whether the last parts of a dotted name are ``target``."""
    return f".{name}".endswith(f".{target}")


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers that have an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapter_names(model: nn.Module) -> set[str]:
    """The names of the adapter's own parameters: A, B and, for DoRA, the lengths of the rows."""
    return {
        f"{name}.{own}"
        for name, layer in adapted_layers(model).items()
        for own, _ in layer.named_parameters()
        if not own.startswith("base_layer.")
    }


def foreign_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """The modules of an adapter that read parameters of others, with these: ZeRO-3 must gather them together.

    DoRA's lengths are those of rows of the layer's own matrix with its update.
    """
    for layer in adapted_layers(model).values():
        if _ADAPTER in layer.lora_magnitude_vector:
            for part in (layer.base_layer, layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]):
                yield layer.lora_magnitude_vector[_ADAPTER], part.weight


@dataclass(frozen=True)
class Update:
    """One layer's adapter.

    Attributes:
        down: A, [r, I].
        up: B, [O, r].
        scale: factor of ``up @ down``.
        lengths: DoRA's length of every row of the adapted weight, [O]; None for LoRA.
    """

    down: Tensor
    up: Tensor
    scale: float
    lengths: Tensor | None = None

    def merged(self, weight: Tensor) -> Tensor:
        """``weight`` [O, I] with the update, computed in float32, in its own dtype.

        LoRA: W + s B A (arXiv 2106.09685, eq. 3). DoRA: m (W + s B A) / ||W + s B A|| with the norm of every output's
        weights (arXiv 2402.09353, eq. 5).
        """
        total = weight.float() + self.scale * (self.up.float() @ self.down.float())
        if self.lengths is not None:
            total *= (self.lengths.float() / torch.linalg.vector_norm(total, dim=1))[:, None]
        return total.to(weight.dtype)


@torch.no_grad()
def merged_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the ordinary model that computes what ``model`` with its adapter does.

    Args:
        model: with an adapter; only its structure is looked at, so its parameters may be sharded.
        weights: its whole state dict, as the backend gathers it.

    Returns:
        Names and dtypes of the model without an adapter; tensors without an update are the same objects, so ties stay.
    """
    layers, adapters = adapted_layers(model), adapter_names(model)
    merged = {}
    for name, tensor in weights.items():
        layer, _, own = name.rpartition(".base_layer.")
        if layer not in layers:
            merged |= {} if name in adapters else {name: tensor}
        else:
            merged[f"{layer}.{own}"] = _merge_layer(layers[layer], layer, weights) if own == "weight" else tensor
    return merged


def _merge_layer(layer: LoraLayer, name: str, weights: Mapping[str, Tensor]) -> Tensor:
    weight = weights[f"{name}.base_layer.weight"]
    update = Update(
        down=weights[f"{name}.lora_A.{_ADAPTER}.weight"],
        up=weights[f"{name}.lora_B.{_ADAPTER}.weight"],
        scale=layer.scaling[_ADAPTER],
        lengths=weights.get(f"{name}.lora_magnitude_vector.{_ADAPTER}.weight"),
    )
    if layer.fan_in_fan_out:  # GPT-2 keeps [I, O]
        return update.merged(weight.t()).t().contiguous()
    return update.merged(weight)
