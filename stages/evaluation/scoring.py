"""Log-probability and greedy token of every scored token of a model, without vocabulary-sized tensors.

B windows of a batch, T positions, R scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from losses.predictions import LinearHead
from stages.model_loading import load_causal_lm
from stages.output_head import OutputHead, output_matrix
from stages.stage import StageError

LOGITS_BLOCK = 1 << 24
"""Most logits held at once while looking for greedy tokens: 64 MiB in float32."""


class TokenRow(Protocol):
    """One text as tokens ``ids``, int32 [T]: those from ``first_scored`` on are scored, the others are context."""

    ids: np.ndarray
    first_scored: int


@runtime_checkable
class RowScorer(Protocol):
    """Several models as one that share a tokenizer, so that they can be asked for tokens."""

    def score_rows(self, rows: Sequence[TokenRow], watch: Callable[[float], None]) -> ModelScores:
        """All scored tokens of ``rows``, before which stands what the tokenizer adds."""


@dataclass(frozen=True)
class ModelScores:
    """Scored tokens of all rows, in the order of the rows.

    Attributes:
        logp: float32 [N], log-probability in nats.
        greedy: int32 [N], the most probable token where the scored one stands.
    """

    logp: np.ndarray
    greedy: np.ndarray


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


def base_states(model: nn.Module, ids: Tensor) -> Tensor:
    """The final hidden states [B, T, D] of token ids [B, T]."""
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def checked_head(model: nn.Module, vocab_size: int, probe: Sequence[int]) -> LinearHead:
    """The model's output head at no positions yet, compared with the model's own logits after the tokens ``probe``.

    Raises:
        StageError: the head is not one that we can compute, or its logits are not finite.
    """
    output_head = OutputHead.of(model, vocab_size)
    output_head.check(model, torch.tensor([list(probe)], device=model.device))
    weight, bias = output_matrix(model)
    return output_head.on(weight.new_empty(0, weight.shape[1]), weight, bias)


def positions_of(model: nn.Module) -> int | None:
    """How many tokens the model can read; None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows of ``lengths`` tokens in batches of similar length, longest first, of at most ``batch_tokens``
    with padding.

    A row longer than ``batch_tokens`` is a batch of its own. The longest come first, so that a batch that does not fit
    into memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        size = max(1, batch_tokens // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def score_batch(
    model: nn.Module, head: LinearHead, rows: Sequence[TokenRow], prefix_ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (float32 [R]) and greedy tokens (int64 [R]) of the scored tokens of ``rows``, in order.

    ``head`` is the model's, at no positions yet.
    """
    texts = [torch.tensor([*prefix_ids, *row.ids.tolist()], device=model.device) for row in rows]
    # Attention is causal and padding stands on the right: no scored position sees it, so no mask is needed.
    hidden = base_states(model, nn.utils.rnn.pad_sequence(texts, batch_first=True))
    firsts = [len(prefix_ids) + row.first_scored for row in rows]
    labels = torch.cat([text[first:] for text, first in zip(texts, firsts, strict=True)])
    before = [found[first - 1 : len(text) - 1] for found, text, first in zip(hidden, texts, firsts, strict=True)]
    # A model that is spread over devices may have its head on another one than its last layer.
    return score_rows(replace(head, hidden=torch.cat(before).to(head.weight.device)), labels.to(head.weight.device))


class ScoredRows:
    """Gathers the scores of rows that are computed in any order.

    Args:
        counts: scored tokens of every row.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self._offsets = np.cumsum([0, *counts])
        total = int(self._offsets[-1])
        self._scores = ModelScores(np.empty(total, dtype=np.float32), np.empty(total, dtype=np.int32))
        self._done = 0

    @property
    def share(self) -> float:
        """Of the scored tokens, those that are there."""
        return self._done / max(1, len(self._scores.logp))

    def put(self, rows: Sequence[int], logp: Tensor, greedy: Tensor) -> None:
        """The scored tokens of ``rows``, one row's after the other's."""
        where = np.concatenate([np.arange(self._offsets[index], self._offsets[index + 1]) for index in rows])
        self._scores.logp[where] = logp.cpu().numpy()
        self._scores.greedy[where] = greedy.cpu().numpy()
        self._done += len(where)

    def finish(self, name: str) -> ModelScores:
        """All scores of the model ``name``.

        Raises:
            StageError: some log-probability is not finite.
        """
        if not np.isfinite(self._scores.logp).all():
            raise StageError(f"{name}: some log-probabilities are not finite; the model is broken")
        return self._scores


@torch.inference_mode()
def score_windows(
    model: nn.Module,
    rows: Sequence[TokenRow],
    *,
    prefix_ids: Sequence[int],
    vocab_size: int,
    batch_tokens: int,
    on_batch: Callable[[float], None],
) -> ModelScores:
    """Score all ``rows``; after each batch, ``on_batch`` gets the share of tokens done.

    ``prefix_ids`` (a BOS that the tokenizer itself adds) stand before every row as context; every scored token has a
    token before it.

    Raises:
        StageError: a row is longer than the model's positions, the head is not one that we can compute, or the model
            gives log-probabilities that are not finite.
    """
    scores = ScoredRows([len(row.ids) - row.first_scored for row in rows])
    if not rows:
        return scores.finish(model.name_or_path)
    lengths = [len(prefix_ids) + len(row.ids) for row in rows]
    positions = positions_of(model)
    if positions is not None and max(lengths) > positions:
        raise StageError(
            f"{model.name_or_path}: a window takes {max(lengths)} tokens, the model has {positions} positions; "
            f"lower window_bytes"
        )
    longest = rows[int(np.argmax(lengths))]
    head = checked_head(model, vocab_size, [*prefix_ids, *longest.ids.tolist()][:16])
    for batch in batches(lengths, batch_tokens):
        scores.put(batch, *score_batch(model, head, [rows[index] for index in batch], prefix_ids))
        on_batch(scores.share)
    return scores.finish(model.name_or_path)
