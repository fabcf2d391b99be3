"""The output head of a Hugging Face causal language model: what it does to final hidden states, and proof of it.

Imported by the stages' work, never while planning.

Legend: R rows (token positions), D width, T tokens, V rows of the output matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from losses.predictions import LinearHead
from stages.sharded import whole, whole_shape
from stages.stage import StageError

_TOLERANCE = 0.02
"""Largest difference of our logits from the model's own, relative to its largest; bf16 has 8 bits."""
_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Where configurations keep a factor of the logits: Cohere's, Falcon-H1's and Muse's."""


@dataclass(frozen=True)
class OutputHead:
    """What a model does between final hidden states and logits, beside its output matrix and bias.

    Attributes:
        vocab_size: ids of its tokenizer; rows of the output matrix beyond them are padding.
        softcap: soft cap of the logits; None for no cap.
        scale: factor of the logits before the cap.
    """

    vocab_size: int
    softcap: float | None
    scale: float

    @classmethod
    def of(cls, model: nn.Module, vocab_size: int) -> Self:
        """The head of a causal language model whose tokenizer has ``vocab_size`` ids.

        Raises:
            StageError: the tokenizer has ids that the model has no row for, or the head is more than one matrix.
        """
        layer = model.get_output_embeddings()
        own = ("weight", "bias", "parametrizations")
        others = [name for name, _ in layer.named_parameters() if name.split(".")[0] not in own]
        if others:
            raise StageError(
                f"the output head of {_name(model)} has parameters beside weight and bias ({', '.join(others[:3])}): "
                "an adapter must be merged into the weight first"
            )
        rows = whole_shape(layer.weight)[0]
        if vocab_size > rows:
            raise StageError(
                f"{_name(model)}: the tokenizer has ids up to {vocab_size - 1}, the model has only {rows} output rows; "
                "this is not the model's tokenizer"
            )
        config = model.config.get_text_config()
        return cls(vocab_size, getattr(config, "final_logit_softcapping", None), _scale(config))

    def on(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> LinearHead:
        """The head at final hidden states [R, D], with the model's output matrix and bias."""
        return LinearHead(hidden, weight, bias, self.softcap, self.scale, self.vocab_size)

    @torch.no_grad()
    def check(self, model: nn.Module, ids: Tensor) -> None:
        """Compare our logits with the model's own after the tokens ``ids`` [1, T].

        Raises:
            StageError: the model does something between hidden states and logits that we do not know.
        """
        theirs = model(input_ids=ids, use_cache=False).logits[0, :, : self.vocab_size].float()
        if not theirs.isfinite().all():
            raise StageError(f"the logits of {_name(model)} are not finite: its weights are damaged")
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        with whole(model.get_output_embeddings().parameters()):
            ours = self.on(hidden, *output_matrix(model)).logits(slice(None)).float()
        largest, error = float(theirs.abs().max()), float((ours - theirs).abs().max())
        if not error <= _TOLERANCE * largest:
            raise StageError(
                f"the output head of {_name(model)} does more than multiply hidden states by a matrix, with bias, "
                f"scale and soft cap: its own logits, of up to {largest:.3g}, differ "
                f"from ours by {error:.3g}. Such models are not supported"
            )


def output_matrix(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight [V, D] and bias [V] of a model's output head; a parametrised weight is computed here."""
    layer = model.get_output_embeddings()
    return layer.weight, getattr(layer, "bias", None)


def _scale(config: Any) -> float:
    """What a model multiplies its logits by."""
    for name in _FACTORS:
        if isinstance(getattr(config, name, None), (int, float)):
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    # The one name has two meanings: Granite and MiniCPM divide by it.
    return float(scaling) if config.model_type.startswith("hyperclovax") else 1 / float(scaling)


def _name(model: nn.Module) -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__
