"""Log-probability and greedy token of every scored token of a model, without vocabulary-sized tensors.

B windows of a batch, T positions, R scored tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from losses.predictions import LinearHead
from stages.evaluation.windows import Window
from stages.model_loading import load_causal_lm
from stages.output_head import OutputHead, output_matrix
from stages.stage import StageError

LOGITS_BLOCK = 1 << 24
"""Most logits held at once while looking for greedy tokens: 64 MiB in float32."""


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


@torch.no_grad()
def score_rows(head: LinearHead, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of ``labels`` [R] in nats and most probable token [R] at the head's R positions."""
    block = max(1, LOGITS_BLOCK // head.vocab_size)
    logp, greedy = [], []
    for start in range(0, len(head), block):
        rows = slice(start, start + block)
        logits = head.logits(rows)
        logp.append(logits.gather(1, labels[rows, None]).squeeze(1) - logits.logsumexp(1))
        greedy.append(logits.argmax(1))
    return torch.cat(logp), torch.cat(greedy)


def load_model(path: Path) -> nn.Module:
    """The model at ``path`` in its stored dtype, on the accelerator if there is one, ready to be scored."""
    model = load_causal_lm(path, dtype="auto")
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


def score_batch(
    model: nn.Module, head: LinearHead, windows: Sequence[Window], prefix_ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (float32 [R]) and greedy tokens (int64 [R]) of the scored tokens of ``windows``, in order.

    ``head`` is the model's, at no positions yet.
    """
    rows = [torch.tensor([*prefix_ids, *window.ids.tolist()], device=model.device) for window in windows]
    # Attention is causal and padding stands on the right: no scored position sees it, so no mask is needed.
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    hidden = model.base_model(input_ids=padded, use_cache=False).last_hidden_state
    firsts = [len(prefix_ids) + window.first_scored for window in windows]
    labels = torch.cat([row[first:] for row, first in zip(rows, firsts, strict=True)])
    before = [states[first - 1 : len(row) - 1] for states, row, first in zip(hidden, rows, firsts, strict=True)]
    return score_rows(replace(head, hidden=torch.cat(before)), labels)


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
    output_head = OutputHead.of(model, vocab_size)
    output_head.check(model, torch.tensor([[*prefix_ids, *longest.ids.tolist()]], device=model.device)[:, :16])
    weight, bias = output_matrix(model)
    head = output_head.on(weight.new_empty(0, weight.shape[1]), weight, bias)
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
