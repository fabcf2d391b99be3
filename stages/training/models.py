"""The teacher and the student as scoring modules: token ids in, what the objectives read out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from losses.chunks import shift_scores
from losses.output import LossOutput
from losses.predictions import LinearHead, Predictions, top_k_predictions
from losses.scores import token_scores
from stages.model_loading import load_causal_lm
from stages.output_head import OutputHead, output_matrix
from stages.sharded import whole
from stages.stage import StageError
from stages.training.attention import attention_inputs, check_packing
from stages.training.data.batch import SideBatch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Reads:
    """What objectives take from a model beside its final hidden states and its output head.

    Attributes:
        label: log-probability of every scored token.
        boundary: log-probability that a boundary follows, where chunks end.
        layers: hidden states of these layers, as indices into transformers' ``hidden_states``.
    """

    label: bool = False
    boundary: bool = False
    layers: tuple[int, ...] = ()

    def __or__(self, other: Reads) -> Reads:
        layers = tuple(dict.fromkeys(self.layers + other.layers))
        return Reads(self.label or other.label, self.boundary or other.boundary, layers)


@dataclass(frozen=True)
class Signals:
    """What one forward pass tells about a batch of windows.

    Attributes:
        label_logp: float32 [B, T]; log-probability of token t given the tokens before it, 0 where it is not scored.
            None if nobody reads it.
        boundary_logp: float32 [B, T]; log-mass that a token starting with a boundary byte comes after token t, NaN
            where token t ends no chunk. None if nobody reads it.
        hidden: final hidden states [B, T, D], the input of the output head. None, and ``head`` too, for a teacher of
            which objectives may see less: a step holds the teacher's signals of all its micro-batches at once.
        layers: hidden states [B, T, D] of the requested layers, by number (0 is the embedding, -1 the final norm).
        head: the output head at all B * T positions, row b * T + t for token t of window b.
        predictions: the next-token distributions at the same rows, as far as objectives may see them; None if a
            teacher gives scores alone.
    """

    label_logp: Tensor | None
    boundary_logp: Tensor | None
    hidden: Tensor | None
    layers: dict[int, Tensor]
    head: LinearHead | None
    predictions: Predictions | None


class Pass(NamedTuple):
    """What the objectives make of a student's forward pass.

    Attributes:
        outputs: one an objective, with gradient.
        gram: float64 [L, L], inner products of the gradients of the L totals with respect to the final hidden states,
            where these are small and whole whatever ZeRO shards; None if nobody asked.
    """

    outputs: list[LossOutput]
    gram: Tensor | None


Losses = Callable[[Signals], Sequence[LossOutput]]


class ScoringHead(nn.Module):
    """Everything that multiplies by the output matrix, as a module of its own: ZeRO-3 gathers the matrix around it."""

    def forward(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, use: Callable) -> tuple:
        """``use(hidden, weight, bias)``, as plain tuples of tensors, which DeepSpeed's hooks look into."""
        return use(hidden, weight, bias)


class ScoringModel(nn.Module):
    """A causal language model that never keeps a [B, T, V] tensor.

    Args:
        model: a Hugging Face causal language model.
        vocab_size: ids of its tokenizer; rows of the output matrix beyond them are padding, with no probability.
        reads: what the objectives take from it.
        boundary_mask: bool [vocab_size], tokens that start with a boundary byte; needed if ``reads.boundary``.
        top_k: how many tokens of every position objectives may see; None for the whole distribution, 0 for none: the
            scores alone.
        packing: whether rows may hold several windows.

    Attributes:
        auxiliary: the objectives' own modules, by the objective's name, so that the engine trains and saves them.
    """

    def __init__(
        self,
        model: nn.Module,
        vocab_size: int,
        reads: Reads,
        boundary_mask: Tensor | None = None,
        top_k: int | None = None,
        packing: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.packing = packing
        self.top_k = top_k
        self.vocab_size = vocab_size
        self.reads = reads
        self.head = ScoringHead()
        self.auxiliary = nn.ModuleDict()
        self.output_head = OutputHead.of(model, vocab_size)
        self._kept_matrix: tuple[Tensor, Tensor | None] | None = None
        self.register_buffer("boundary_mask", boundary_mask, persistent=False)

    def forward(self, batch: SideBatch, losses: Losses, measure: bool = False) -> Pass:
        """Run the model and evaluate ``losses`` on what it tells, while its output matrix is at hand.

        Args:
            measure: also compare the losses' gradients.
        """
        body = self._body(batch)

        def use(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple:
            outputs = losses(self._signals(batch, hidden, weight, bias, body.hidden_states))
            totals = tuple(output.total for output in outputs)
            # Here and not later: DeepSpeed takes any gradient through what leaves this module for the step's own.
            gram = _gradient_gram(totals, hidden) if measure else None
            return totals, tuple((output.count, output.metrics) for output in outputs), gram

        totals, facts, gram = self._use_head(body.last_hidden_state, use)
        return Pass([LossOutput(total, *fact) for total, fact in zip(totals, facts, strict=True)], gram)

    @torch.no_grad()
    def score(self, batch: SideBatch) -> Signals:
        """What a frozen model tells about ``batch``, without gradients."""
        body = self._body(batch)
        matrix = self._kept_matrix or output_matrix(self.model)
        signals = self._signals(batch, body.last_hidden_state, *matrix, body.hidden_states)
        if self.top_k is None:
            return signals
        predictions = top_k_predictions(signals.head, self.top_k) if self.top_k else None
        return replace(signals, hidden=None, head=None, predictions=predictions)

    def keep_output_matrix(self) -> None:
        """Keep a whole copy of the output matrix of a frozen model that is split over processes; collective."""
        with whole(self.model.get_output_embeddings().parameters()):
            weight, bias = output_matrix(self.model)
            self._kept_matrix = weight.detach().clone(), None if bias is None else bias.detach().clone()

    def check(self) -> None:
        """Compare our logits with the model's own on two tokens; and have it read packed rows, if it is to.

        Raises:
            StageError: the model does something between hidden states and logits that we do not know, or it mixes the
                windows of a row.
        """
        ids = torch.arange(min(2, self.vocab_size), device=self.model.device)[None]
        training = self.training
        self.eval()  # dropout would make two passes differ
        self.output_head.check(self.model, ids)
        if self.packing:
            check_packing(self.model)
        self.train(training)

    def _body(self, batch: SideBatch) -> Any:
        return self.model.base_model(
            input_ids=batch.ids,
            **attention_inputs(batch, self.model.config._attn_implementation),
            output_hidden_states=bool(self.reads.layers),
            use_cache=False,
        )

    def _use_head(self, hidden: Tensor, use: Callable) -> tuple:
        return self.head(hidden, *output_matrix(self.model), use)

    def _signals(
        self,
        batch: SideBatch,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        hidden_states: Sequence[Tensor] | None,
    ) -> Signals:
        head = self.output_head.on(hidden.flatten(0, 1), weight, bias)
        label_logp = boundary_logp = None
        if self.reads.label or self.reads.boundary:
            scores = token_scores(
                head.hidden,
                weight,
                batch.labels.flatten(),
                boundary_mask=self.boundary_mask if self.reads.boundary else None,
                boundary_rows=_chunk_ends(batch.chunk).flatten() if self.reads.boundary else None,
                bias=bias,
                softcap=head.softcap,
                scale=head.scale,
                vocab_size=head.vocab_size,
            )
            label_logp = shift_scores(scores.label_logp.view(batch.ids.shape))
            if scores.boundary_logp is not None:
                boundary_logp = scores.boundary_logp.view(batch.ids.shape)
        # The last one is the head's input itself, so that gradients of losses on it can be compared there.
        layers = {layer: hidden_states[layer] for layer in self.reads.layers}
        layers |= {layer: hidden for layer in layers if layer in (-1, len(hidden_states) - 1)}
        return Signals(label_logp, boundary_logp, hidden, layers, head, head)


def _chunk_ends(chunk: Tensor) -> Tensor:
    """bool [B, T]: the last token of every chunk."""
    following = nn.functional.pad(chunk[:, 1:], (0, 1), value=-1)
    return (chunk >= 0) & (chunk != following)


def _gradient_gram(totals: Sequence[Tensor], hidden: Tensor) -> Tensor:
    """Inner products of the totals' gradients in ``hidden``: float64 [L, L].

    A loss that does not depend on the final hidden states (one of earlier layers) has the gradient 0 there.
    """
    gradients = [torch.autograd.grad(total, hidden, retain_graph=True, allow_unused=True)[0] for total in totals]
    stacked = torch.stack([torch.zeros_like(hidden) if g is None else g for g in gradients])
    gram = torch.zeros(len(totals), len(totals), dtype=torch.float64, device=hidden.device)
    for window in stacked.unbind(1):  # in float64 they would be four times the size of all of them
        flat = window.flatten(1).double()
        gram.addmm_(flat, flat.t())
    return gram


def load_model(directory: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Load a ModelArtifact, with SDPA attention where the architecture has it.

    Raises:
        StageError: its files lack weights, which would be random.
    """
    model, report = load_causal_lm(directory, dtype=dtype, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise StageError(f"{directory} lacks weights of its model: {', '.join(missing[:3])}; make it again")
    return model.to(device)


def pick_device(local_rank: int) -> torch.device:
    """This process's accelerator, or the CPU where there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
