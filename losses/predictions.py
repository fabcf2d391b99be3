"""Next-token distributions of a batch of positions, held so that no ``[R, V]`` tensor exists.

A loss that compares distributions reads them a block of rows at a time. They come from a model's hidden states and its
output head (``LinearHead``), or from what a cached or served teacher gives: the most probable tokens of each position
(``TopKPredictions``).

Legend: R rows (token positions), D width of the hidden states, V vocabulary, K most probable tokens, b rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from losses.head_arithmetic import accumulation_dtype, finish_logits, matmul, operand_dtype, row_blocks

MASS_TOLERANCE = 1e-3
"""How far above 1 the probabilities of a row may add up: half-precision log-probabilities are that coarse."""


class Predictions(Protocol):
    """One next-token distribution a row, over ``vocab_size`` tokens; carries no gradient.

    ``complete`` tells whether every row adds up to 1; the mass that an incomplete one lacks is on unknown tokens.
    """

    vocab_size: int
    complete: bool

    def __len__(self) -> int:
        """Number of rows."""

    def at(self, rows: Tensor) -> Self:
        """The distributions at ``rows`` (int64 [N], in any order)."""

    def log_probs(self, rows: slice) -> Tensor:
        """Log-probabilities [b, V] in nats of a block of rows, float32 or float64; -inf where unknown."""


class _CastOnce:
    """A weight in the dtype of its products: cast when first asked for, then kept."""

    def __init__(self) -> None:
        self._source: Tensor | None = None
        self._cast: Tensor | None = None

    def __call__(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        if weight.dtype == dtype:
            return weight.detach()
        # By address, so that a detached weight is the same one; the source is kept, so the address stays taken.
        known = self._source is not None and self._source.data_ptr() == weight.data_ptr()
        if not known or self._cast.shape != weight.shape or self._cast.dtype != dtype:
            self._source, self._cast = weight.detach(), weight.detach().to(dtype)
        return self._cast


@dataclass(frozen=True)
class LinearHead:
    """A model's output head at R positions: ``softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)``.

    Attributes:
        hidden: [R, D] final hidden states, any floating dtype.
        weight: [V or more, D] output embeddings; rows from ``vocab_size`` on are padding and never enter. Not to be
            changed in place while the head is used.
        bias: [V or more], or None.
        softcap: soft cap of the logits, as in Gemma 2; None for no cap.
        scale: factor of the logits before the cap, as in Cohere's models.
        size: number of real tokens; None for all rows of the weight.

    Raises:
        ValueError: the attributes do not fit together.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    size: int | None = None
    # Shared by all selections of rows, so that a half-precision weight is cast once a step and not once a block.
    _cast: _CastOnce = field(default_factory=_CastOnce, repr=False, compare=False)

    complete = True

    def __post_init__(self) -> None:
        if self.hidden.ndim != 2 or self.weight.ndim != 2 or self.hidden.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"hidden {tuple(self.hidden.shape)} and weight {tuple(self.weight.shape)} must be [R, D] and [V, D] "
                "with one D"
            )
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"bias has shape {tuple(self.bias.shape)}; expected [{len(self.weight)}], one a weight row"
            )
        if not 1 <= self.vocab_size <= len(self.weight):
            raise ValueError(
                f"the vocabulary has {self.vocab_size} tokens, but the head's weight {len(self.weight)} rows"
            )
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap is {self.softcap}; it must be positive, or None for no cap")
        if not 0 < self.scale < torch.inf:
            raise ValueError(f"scale is {self.scale}; the factor of the logits must be positive and finite")

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def vocab_size(self) -> int:
        """Number of real tokens."""
        return len(self.weight) if self.size is None else self.size

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of all arithmetic over the vocabulary: float32, or float64 for float64 hidden states."""
        return accumulation_dtype(self.hidden.dtype)

    def at(self, rows: Tensor) -> Self:
        """The head at ``rows`` of the positions; differentiable in ``hidden``."""
        return replace(self, hidden=self.hidden.index_select(0, rows))

    def operands(self, rows: slice) -> tuple[Tensor, Tensor]:
        """What the logits of a block of rows are a product of, without gradient, in the dtype of products.

        Returns:
            The block's hidden states [b, D] and the real tokens' weight [V, D].
        """
        dtype = operand_dtype(self.hidden)
        return self.hidden.detach()[rows].to(dtype), self._cast(self.weight, dtype)[: self.vocab_size]

    @torch.no_grad()
    def logits(self, rows: slice) -> Tensor:
        """Logits [b, V] of a block of rows, without gradient."""
        hidden, weight = self.operands(rows)
        bias = None if self.bias is None else self.bias[: self.vocab_size].to(self.dtype)
        return finish_logits(matmul(hidden, weight.t()), bias, self.scale, self.softcap)

    def log_probs(self, rows: slice) -> Tensor:
        """Log-probabilities [b, V] of a block of rows, without gradient."""
        return self.logits(rows).log_softmax(-1)


@dataclass(frozen=True)
class TopKPredictions:
    """The K most probable tokens of each of R positions; what is left of the mass is somewhere else.

    Attributes:
        ids: int64 [R, K].
        logp: [R, K] log-probabilities in nats, float32 or float64.
        vocab_size: V.

    Raises:
        ValueError: an id is outside the vocabulary or occurs twice in a row, or a row is no part of a distribution (a
            NaN, a log-probability above 0, probabilities that add up to more than 1).
    """

    ids: Tensor
    logp: Tensor
    vocab_size: int

    complete = False

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.logp.shape:
            raise ValueError(
                f"ids {tuple(self.ids.shape)} and logp {tuple(self.logp.shape)} must have one shape [R, K]"
            )
        if ((self.ids < 0) | (self.ids >= self.vocab_size)).any():
            raise ValueError(f"an id of the teacher's top tokens is outside its vocabulary of {self.vocab_size}")
        ordered = self.ids.sort(1).values
        if (ordered[:, 1:] == ordered[:, :-1]).any():
            raise ValueError("a token occurs twice among the teacher's top tokens of one position")
        check_log_probs(self.logp, complete=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tail_logp(self) -> Tensor:
        """Log of the probability [R] of all other tokens together; -inf where rounding leaves nothing."""
        return torch.log1p(-self.logp.double().exp().sum(1).clamp(max=1)).to(self.logp.dtype)

    def at(self, rows: Tensor) -> Self:
        """The distributions at ``rows``."""
        return replace(self, ids=self.ids.index_select(0, rows), logp=self.logp.index_select(0, rows))

    def log_probs(self, rows: slice) -> Tensor:
        """Log-probabilities [b, V] of a block of rows; -inf outside the K known tokens."""
        ids, logp = self.ids[rows], self.logp[rows]
        return logp.new_full((len(ids), self.vocab_size), -torch.inf).scatter_(1, ids, logp)


@torch.no_grad()
def top_k_predictions(predictions: Predictions, k: int) -> TopKPredictions:
    """The ``k`` most probable tokens of every row, most probable first: what a cached or served teacher keeps.

    Args:
        predictions: of R rows; read a block of rows at a time.
        k: at most the number of tokens that every row knows.

    Raises:
        ValueError: a row knows fewer tokens.
    """
    most = predictions.ids.shape[1] if isinstance(predictions, TopKPredictions) else predictions.vocab_size
    if not 1 <= k <= most:
        raise ValueError(f"k is {k}, but a row has the probabilities of {most} tokens; take 1 to {most}")
    probe = predictions.log_probs(slice(0, 0))
    # The logits, the log-probabilities, and what sorting needs.
    row_bytes = 4 * predictions.vocab_size * probe.element_size()
    blocks = row_blocks(len(predictions), row_bytes, probe.device)
    best = [predictions.log_probs(rows).topk(k, dim=1) for rows in blocks] or [probe.topk(k, dim=1)]
    return TopKPredictions(
        torch.cat([block.indices for block in best]),
        torch.cat([block.values for block in best]),
        predictions.vocab_size,
    )


def check_log_probs(logp: Tensor, *, complete: bool) -> None:
    """Refuse what is no distribution, whoever made it.

    Args:
        logp: [R, any] log-probabilities in nats; -inf is a probability of 0.
        complete: whether every row must add up to 1; else it may not exceed 1.

    Raises:
        ValueError: a NaN, a log-probability above 0, or a wrong sum; names the row.
    """
    mass = logp.double().exp().sum(-1)
    wrong = logp.isnan().any(-1) | (logp > MASS_TOLERANCE).any(-1) | (mass > 1 + MASS_TOLERANCE)
    if complete:
        wrong |= mass < 1 - MASS_TOLERANCE
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"row {row} of the teacher's predictions is no distribution: its probabilities add up to {mass[row]:.6g}"
            f" and its largest log-probability is {logp[row].max():.6g}; they must be log-probabilities in nats"
        )
