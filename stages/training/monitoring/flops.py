"""Floating-point operations that a step needs, and how many the device could do: their quotient is the MFU.

Model FLOPs as in PaLM (Chowdhery et al., arXiv 2204.02311, appendix B), a multiply-add counting as two:

    forward    2 * (M * tokens + H * predictions) + 4 * A * pairs
    backward   the same once more for the gradients of the activations' products and twice for attention,
               and 2 * (trained part of M and H) for those of the weights

M entries of all matrices but embedding and head (of a mixture of experts, those of the experts that a token sees),
H entries of the output head, A attention heads times their width in all layers. ``pairs`` counts a token with each that
it attends to, itself included: a causal half of what PaLM counts. What is computed again (activation checkpointing,
the fused head's second pass) or on padding is work of the hardware and not of the model: it is not counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from stages.training.optimiser import vocabulary_parameters

PEAK_TFLOPS = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("H200 NVL", 835.0),
    ("H200", 989.4),
    ("H100 NVL", 835.0),
    ("H100 PCIe", 756.0),
    ("GH200", 989.4),
    ("H100", 989.4),
    ("H800", 989.4),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("A40", 149.7),
    ("A10", 125.0),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("MI300X", 1307.4),
    ("MI250X", 383.0),
)
"""Part of a device's name -> dense bf16 teraflops a second by its data sheet, without sparsity. The first that fits."""


@dataclass(frozen=True)
class ModelFlops:
    """What one model's operations are counted from.

    Attributes:
        body: entries of its matrices beside embedding and head that one token meets.
        head: entries of the output head.
        attention: heads times head width, summed over the layers.
        trained_body, trained_head: those of them that learn.
    """

    body: int
    head: int
    attention: int
    trained_body: int
    trained_head: int

    @classmethod
    def of(cls, model: nn.Module) -> ModelFlops:
        """Count a causal language model's matrices, whole ones where they are sharded or packed."""
        vocabulary = {id(p) for p in vocabulary_parameters(model)}
        output = model.get_output_embeddings()
        share = _expert_share(model)
        body = [
            (p.requires_grad, _size(p) * (share if ".experts." in f".{name}" else 1.0))
            for name, p in model.named_parameters()
            if id(p) not in vocabulary and len(_shape(p)) >= 2
        ]
        head = [(p.requires_grad, _size(p)) for p in output.parameters() if len(_shape(p)) >= 2]
        return cls(
            body=round(sum(size for _, size in body)),
            head=round(sum(size for _, size in head)),
            attention=_attention(model),
            trained_body=round(sum(size for trains, size in body if trains)),
            trained_head=round(sum(size for trains, size in head if trains)),
        )

    def forward(self, tokens: float, predictions: float, pairs: float) -> float:
        """Operations of a forward pass."""
        return 2 * (self.body * tokens + self.head * predictions) + 4 * self.attention * pairs

    def training(self, tokens: float, predictions: float, pairs: float) -> float:
        """Operations of a forward and a backward pass."""
        weights = 2 * (self.trained_body * tokens + self.trained_head * predictions)
        activations = self.forward(tokens, predictions, pairs) + 4 * self.attention * pairs
        return self.forward(tokens, predictions, pairs) + activations + weights


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """Operations a second of one device in ``dtype`` (``bf16``, ``fp32``); None where no data sheet is at hand."""
    if device.type != "cuda" or dtype != "bf16":
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(name: str) -> float | None:
    """Dense bf16 operations a second of the device called ``name``; None for an unknown one."""
    if "Laptop" in name:  # the same names, on other chips
        return None
    return next((teraflops * 1e12 for part, teraflops in PEAK_TFLOPS if re.search(rf"\b{part}\b", name)), None)


def _attention(model: nn.Module) -> int:
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return 0  # a recurrent model attends to no pairs
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * width * config.num_hidden_layers


def _expert_share(model: nn.Module) -> float:
    """Share of a layer's experts that a token is sent to; 1 for a dense model."""
    config = model.config.get_text_config()
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((number for name in names if (number := getattr(config, name, None))), None)
    used = getattr(config, "num_experts_per_tok", None)
    return used / experts if experts and used else 1.0


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The whole parameter's shape: ZeRO-3 keeps it beside the shard, bitsandbytes beside the packed bytes."""
    quantised = getattr(parameter, "quant_state", None)
    return getattr(parameter, "ds_shape", parameter.shape) if quantised is None else quantised.shape


def _size(parameter: nn.Parameter) -> int:
    return _shape(parameter).numel()
