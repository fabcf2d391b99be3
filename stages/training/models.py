"""The teacher and the student as scoring modules: token ids in, a few numbers a token out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from losses.chunks import shift_scores
from losses.scores import token_scores
from stages.training.data import SideBatch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Signals:
    """What one forward pass tells about a batch of windows.

    Attributes:
        label_logp: float32 [B, T]; log-probability of token t given the tokens before it, 0 where it is not scored.
        boundary_logp: float32 [B, T] or None; log-mass that a token starting with a boundary byte comes after token t.
        hidden: final hidden states [B, T, D], the input of the output head.
        layers: hidden states [B, T, D] of the requested layers, by number (0 is the embedding, -1 the final norm).
    """

    label_logp: Tensor
    boundary_logp: Tensor | None
    hidden: Tensor
    layers: dict[int, Tensor]


class ScoringHead(nn.Module):
    """The fused head as a module of its own, so that ZeRO-3 gathers the output matrix around it, both ways."""

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        boundary_mask: Tensor | None,
        boundary_rows: Tensor | None,
        softcap: float | None,
        vocab_size: int,
    ) -> tuple[Tensor, Tensor | None]:
        """``token_scores`` as a plain tuple, which is what DeepSpeed's hooks look into."""
        scores = token_scores(
            hidden,
            weight,
            labels,
            boundary_mask=boundary_mask,
            boundary_rows=boundary_rows,
            bias=bias,
            softcap=softcap,
            vocab_size=vocab_size,
        )
        return scores.label_logp, scores.boundary_logp


class ScoringModel(nn.Module):
    """A causal language model with the fused head: never keeps a [B, T, V] tensor.

    Args:
        model: a Hugging Face causal language model.
        vocab_size: ids of its tokenizer; rows of the output matrix beyond them are padding, with no probability.
        boundary_mask: bool [vocab_size], tokens that start with a boundary byte.
        layers: which hidden states to return, as indices into transformers' ``hidden_states``.
    """

    def __init__(
        self, model: nn.Module, vocab_size: int, boundary_mask: Tensor | None = None, layers: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.model = model
        self.head = ScoringHead()
        self.layers = layers
        self.softcap = getattr(model.config, "final_logit_softcapping", None)
        self.register_buffer("boundary_mask", boundary_mask, persistent=False)

    def forward(self, batch: SideBatch) -> Signals:
        """Score every labelled token of ``batch``."""
        body = self.model.base_model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            output_hidden_states=bool(self.layers),
            use_cache=False,
        )
        hidden = body.last_hidden_state
        output = self.model.get_output_embeddings()
        label_logp, boundary_logp = self.head(
            hidden.flatten(0, 1),
            output.weight,
            getattr(output, "bias", None),
            batch.labels.flatten(),
            self.boundary_mask,
            None if self.boundary_mask is None else (batch.chunk >= 0).flatten(),
            self.softcap,
            self.vocab_size,
        )
        return Signals(
            label_logp=shift_scores(label_logp.view(batch.ids.shape)),
            boundary_logp=None if boundary_logp is None else boundary_logp.view(batch.ids.shape),
            hidden=hidden,
            layers={layer: body.hidden_states[layer] for layer in self.layers},
        )


def load_model(directory: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Load a ModelArtifact, with SDPA attention, without cache."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa")
    return model.to(device)


def pick_device(local_rank: int) -> torch.device:
    """This process's accelerator, or the CPU where there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def to_device(batch: SideBatch, device: torch.device) -> SideBatch:
    """``batch`` with its tensors on ``device``."""
    return SideBatch(*(getattr(batch, name).to(device, non_blocking=True) for name in SideBatch.__dataclass_fields__))
