"""Log-probability and greedy token of every scored token of a model, without vocabulary-sized tensors.

B windows of a batch, T positions, R scored tokens, V vocabulary, D width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from losses.scores import token_scores
from stages.evaluation.windows import Window
from stages.stage import StageError

LOGITS_BLOCK = 1 << 24
"""Most logits held at once while looking for greedy tokens: 64 MiB in float32."""
HEAD_TOLERANCE_NATS = 0.3
"""How far the model's own log-probabilities may be from ours; bfloat16 logits alone explain about 0.1."""


@dataclass(frozen=True)
class ModelScores:
    """Scored tokens of all windows, in the order of the windows.

    Attributes:
        logp: float32 [N], log-probability in nats.
        greedy: int32 [N], the most probable token where the scored one stands.
    """

    logp: np.ndarray
    greedy: np.ndarray

    def save(self, path: Path) -> None:
        """Write to ``path``: afterwards it is there in full or not at all."""
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, logp=self.logp, greedy=self.greedy)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> ModelScores:
        """Read what ``save`` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["logp"], arrays["greedy"])


@dataclass(frozen=True)
class Head:
    """The last linear layer: weight [V, D] and bias [V] in float32, without rows that the tokenizer cannot name."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None

    @classmethod
    def of(cls, model: nn.Module, vocab_size: int) -> Head:
        """The head of a causal language model whose tokenizer has ``vocab_size`` ids.

        Raises:
            StageError: the tokenizer has ids that the model has no row for.
        """
        linear = model.get_output_embeddings()
        if vocab_size > linear.weight.shape[0]:
            raise StageError(
                f"{model.name_or_path}: the tokenizer has ids up to {vocab_size - 1}, "
                f"the model has only {linear.weight.shape[0]} output rows; this is not the model's tokenizer"
            )
        bias = getattr(linear, "bias", None)
        return cls(
            weight=linear.weight[:vocab_size].float(),
            bias=None if bias is None else bias[:vocab_size].float(),
            softcap=getattr(model.config, "final_logit_softcapping", None),
        )

    def label_logp(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Log-probabilities [R] of ``labels`` [R] after ``hidden`` [R, D], in nats."""
        return token_scores(hidden, self.weight, labels, bias=self.bias, softcap=self.softcap).label_logp

    def greedy(self, hidden: Tensor) -> Tensor:
        """Most probable token ids [R] after ``hidden`` [R, D]. The soft-cap is monotone, so it changes nothing."""
        rows = max(1, LOGITS_BLOCK // len(self.weight))
        blocks = [nn.functional.linear(block, self.weight, self.bias).argmax(dim=-1) for block in hidden.split(rows)]
        return torch.cat(blocks)


def load_model(path: Path) -> nn.Module:
    """The model at ``path`` in its stored dtype, on the accelerator if there is one, ready to be scored."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def batches(windows: Sequence[Window], prefix: int, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of ``windows`` in batches of similar length, longest first, of at most ``batch_tokens`` with padding.

    A window longer than ``batch_tokens`` is a batch of its own. The longest come first, so that a batch that does
    not fit into memory fails at once.
    """
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index].ids))
    while order:
        size = max(1, batch_tokens // (prefix + len(windows[order[0]].ids)))
        yield order[:size]
        order = order[size:]


def check_head(model: nn.Module, head: Head, input_ids: Tensor) -> None:
    """Compare ``head`` with the model's own logits on ``input_ids`` [1, T].

    Raises:
        StageError: they differ, because the model does more between hidden state and logits than a linear layer.
    """
    labels = input_ids[0, 1:]
    logits = model(input_ids=input_ids, use_cache=False).logits[0, :-1, : len(head.weight)].float()
    expected = logits.log_softmax(dim=-1).gather(1, labels[:, None])[:, 0]
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0, :-1].float()
    error = (head.label_logp(hidden, labels) - expected).abs().max().item()
    if not error <= HEAD_TOLERANCE_NATS:
        raise StageError(
            f"{model.name_or_path}: log-probabilities from its hidden states differ from its own logits by "
            f"{error:.3g} nats. Its head is not a plain linear layer with an optional soft-cap (a logit scale?), "
            f"or its weights are not finite; such models cannot be evaluated yet"
        )


def score_batch(
    model: nn.Module, head: Head, windows: Sequence[Window], prefix_ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (float32 [R]) and greedy tokens (int64 [R]) of the scored tokens of ``windows``, in order."""
    rows = [torch.tensor([*prefix_ids, *window.ids.tolist()], device=model.device) for window in windows]
    # Attention is causal and padding stands on the right: no scored position sees it, so no mask is needed.
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    hidden = model.base_model(input_ids=padded, use_cache=False).last_hidden_state
    firsts = [len(prefix_ids) + window.first_scored for window in windows]
    labels = torch.cat([row[first:] for row, first in zip(rows, firsts, strict=True)])
    before = [states[first - 1 : len(row) - 1] for states, row, first in zip(hidden, rows, firsts, strict=True)]
    before = torch.cat(before).float()
    return head.label_logp(before, labels), head.greedy(before)


@torch.inference_mode()
def score_windows(
    model: nn.Module,
    windows: Sequence[Window],
    *,
    prefix_ids: Sequence[int],
    vocab_size: int,
    batch_tokens: int,
    on_batch: Callable[[float], None],
) -> ModelScores:
    """Score all ``windows`` (at least one); after each batch, ``on_batch`` gets the share of tokens done.

    ``prefix_ids`` (a BOS that the tokenizer itself adds) stand before every window as context.

    Raises:
        StageError: a window is longer than the model's positions, the head is not one that we can compute, or the
            model gives log-probabilities that are not finite.
    """
    longest = max(windows, key=lambda window: len(window.ids))
    length = len(prefix_ids) + len(longest.ids)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise StageError(
            f"{model.name_or_path}: a window takes {length} tokens, the model has {positions} positions; "
            f"lower window_bytes"
        )
    head = Head.of(model, vocab_size)
    check_head(model, head, torch.tensor([[*prefix_ids, *longest.ids.tolist()]], device=model.device)[:, :16])
    offsets = np.cumsum([0, *(window.scored_tokens for window in windows)])
    scores = ModelScores(np.empty(offsets[-1], dtype=np.float32), np.empty(offsets[-1], dtype=np.int32))
    done = 0
    for batch in batches(windows, len(prefix_ids), batch_tokens):
        logp, greedy = score_batch(model, head, [windows[index] for index in batch], prefix_ids)
        where = np.concatenate([np.arange(offsets[index], offsets[index + 1]) for index in batch])
        scores.logp[where] = logp.cpu().numpy()
        scores.greedy[where] = greedy.cpu().numpy()
        done += len(where)
        on_batch(done / len(scores.logp))
    if not np.isfinite(scores.logp).all():
        raise StageError(f"{model.name_or_path}: some log-probabilities are not finite; the model is broken")
    return scores
