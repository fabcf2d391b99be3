"""The probabilities of a few tokens a sequence, read without a ``[N, V]`` tensor.

Legend: B sequences, N rows, V vocabulary, K tokens chosen for each sequence, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from losses.head_arithmetic import row_blocks
from losses.predictions import LinearHead, Predictions
from losses.rowwise import rowwise_values

_BYTES_PER_ENTRY = 16
"""A log-probability, its exponential and that in float64."""


def most_probable_tokens(predictions: Predictions, sequence: Tensor, num_sequences: int, k: int) -> Tensor:
    """The K tokens that have the largest probability summed over a sequence's rows, largest first.

    Args:
        predictions: at N rows.
        sequence: int64 [N], the sequence of each row.
        k: at most the size of the vocabulary.

    Returns:
        int64 [B, K]; of equally probable tokens the one with the smaller id comes first.
    """
    mass = torch.zeros(num_sequences, predictions.vocab_size, dtype=torch.float64, device=sequence.device)
    for rows in _blocks(predictions, sequence.device):
        mass.index_add_(0, sequence[rows], predictions.log_probs(rows).exp().double())
    return mass.sort(dim=1, descending=True, stable=True).indices[:, :k]


def read_log_probs(predictions: Predictions, tokens: Tensor) -> Tensor:
    """Log-probabilities [N, K] of the tokens [N, K], without gradient."""
    blocks = [predictions.log_probs(rows).gather(1, tokens[rows]) for rows in _blocks(predictions, tokens.device)]
    return torch.cat(blocks) if blocks else torch.zeros(tokens.shape, device=tokens.device)


def log_probs_at(head: LinearHead, tokens: Tensor) -> Tensor:
    """Log-probabilities [N, K] of the tokens [N, K], differentiable in the head's hidden states, weight and bias.

    The normaliser runs over the whole vocabulary, so every logit gets its gradient.
    """

    def values_of(rows: slice, logits: Sequence[Tensor]) -> Tensor:
        return logits[0].log_softmax(-1).gather(1, tokens[rows])

    return rowwise_values(values_of, [head])


def _blocks(predictions: Predictions, device: torch.device) -> Iterator[slice]:
    return row_blocks(len(predictions), _BYTES_PER_ENTRY * predictions.vocab_size, device)
