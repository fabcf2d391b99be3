"""Cross-entropy of the chunks on which a model has improved most: ssToken's token selection (arXiv 2510.18250).

The score of a chunk is the loss of an earlier model on it less that of the model in training: what is still to be
learned but noisy shows little improvement, and so does what was known before. Paper and code score tokens of one
tokenization. Here the two models may read different ones, as a model does that trains on text split at random, so the
units are chunks, the spans between byte boundaries that both have; with one tokenization these are its tokens.

Legend: B sequences, T tokens, C chunks, N chunks that can be compared. A *response* is what is selected from at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from losses.chunks import AlignedScores, chunk_last, chunk_sums, chunk_valid, token_coverage
from losses.output import LossOutput, ratio

_RANGE_FLOOR = 1e-8
"""Added to the range that scores are divided by, as in the paper's code."""
_ROUNDING = 1e-9
"""More than float64 is off by in ``share * n`` for any response, less than a share can mean."""


def kept_units(share: float, units: Tensor) -> Tensor:
    """How many of ``units`` (int64) a share of them is, rounded up: int64, of the same shape.

    0.55 of 100 are 55. The product of the floats is 55.00000000000001, of which the paper's code makes 56.
    """
    return (units.double() * share - _ROUNDING).ceil().long().clamp(min=0)


def improvement(history_nats: Tensor, current_nats: Tensor) -> Tensor:
    """The retrospective excess loss: above 0 where the model in training does better than its earlier self."""
    return history_nats - current_nats


def selection_scores(
    improved: Tensor, response: Tensor, attention: Tensor | None = None, improvement_weight: float = 1.0
) -> Tensor:
    """What units are chosen by: ``[N]``.

    Args:
        improved: ``[N]`` nats; it is brought to 0 to 1 within each response.
        response: int64 ``[N]``, at least 0, the response of each unit.
        attention: ``[N]``, share of a unit's attention that is on the prompt; as it is, not brought to 0 to 1, as in
            the paper's code.
        improvement_weight: of the first; the attention has what is left of 1.
    """
    count = int(response.max()) + 1 if len(response) else 0
    lowest, highest = (
        improved.new_zeros(count).scatter_reduce(0, response, improved, reduce, include_self=False)
        for reduce in ("amin", "amax")
    )
    scaled = (improved - lowest[response]) / (highest - lowest + _RANGE_FLOOR)[response]
    if attention is None:
        return scaled
    return improvement_weight * scaled + (1 - improvement_weight) * attention


def best_of_each(scores: Tensor, response: Tensor, share: float) -> Tensor:
    """The ``kept_units`` of each response that score highest: bool ``[N]``; of equal ones the first.

    Args:
        scores: ``[N]``.
        response: int64 ``[N]``, at least 0, the response of each unit.
    """
    if not len(scores):
        return torch.zeros_like(scores, dtype=torch.bool)
    by_score = scores.argsort(descending=True, stable=True)
    order = by_score[response[by_score].argsort(stable=True)]
    sizes = response.bincount()
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(scores), device=scores.device) - starts[response[order]]
    kept = torch.empty_like(scores, dtype=torch.bool)
    kept[order] = rank < kept_units(share, sizes)[response[order]]
    return kept


def selected_cross_entropy(
    history: AlignedScores, current: AlignedScores, window: Tensor, num_chunks: int, *, share: float
) -> LossOutput:
    """Negative log-likelihood in nats of the chunks that the model has improved on most.

    Args:
        history: scores of the earlier model, without gradient.
        current: those of the model in training.
        window: int64 ``[B, T]``, the window of each of the current model's tokens, -1 on padding; a response is the
            part of a window that is scored.
        share: of a response's chunks that are kept, above 0 to 1; rounded up.

    Returns:
        Units are the kept chunks, ``kept_units`` of each response; a chunk of several tokens is as much text as one of
        a single token, and counts as much. Metrics: ``token_coverage`` (scored tokens in kept chunks), ``improvement``
        and ``kept_improvement`` (nats, mean over all comparable chunks and over the kept ones), ``improved_share``.
    """
    valid = chunk_valid(history.scored, history.chunk_ids, num_chunks)
    valid = valid & chunk_valid(current.scored, current.chunk_ids, num_chunks)
    history_nats, nats = (
        -chunk_sums(side.label_logp.masked_fill(~side.scored, 0), side.chunk_ids, num_chunks)[valid]
        for side in (history, current)
    )
    _, response = chunk_last(window, current.chunk_ids, num_chunks)[valid].unique(return_inverse=True)
    improved = improvement(history_nats, nats.detach())
    kept = best_of_each(selection_scores(improved, response), response, share)
    chunks = torch.zeros_like(valid)
    chunks[valid] = kept
    count = kept.sum()
    return LossOutput(
        total=nats.masked_fill(~kept, 0).sum(),
        count=count,
        metrics={
            "token_coverage": token_coverage(current.scored, current.chunk_ids, chunks),
            "improvement": ratio(improved.sum(), valid.sum()),
            "kept_improvement": ratio(improved[kept].sum(), count),
            "improved_share": ratio((improved > 0).sum(), valid.sum()),
        },
    )
