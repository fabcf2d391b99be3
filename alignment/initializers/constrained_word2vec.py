"""Constrained Word2Vec: rows learnt from text, inside the convex hull of the old rows (embedding_init.md §1.13).

Mundra et al., "An Empirical Comparison of Vocabulary Expansion and Initialization Approaches for Language Models"
(CoNLL 2024)::

    E_new = softmax(A1 A2) E_old        A1 [n_new, R], A2 [R, n_old], both from uniform(0, 1)
    loss  = -log sigmoid(u v) - log sigmoid(-sum of u v_negative)

over pairs of a token u and a neighbour v. Here a pair's first token is always a new one and tokens that are copied keep
their old rows throughout, so that the text ties the new rows to the old ones. A window stays within its document.
Frequent tokens are not thinned out: the paper's threshold keeps them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

_ROW_BLOCK = 512
_NEGATIVE_POWER = 0.75


@dataclass(frozen=True)
class Schedule:
    """How long and on what the weights are trained; the fields are those of the recipe's options."""

    rank: int
    window: int
    negatives: int
    epochs: int
    batch_pairs: int
    learning_rate: float
    max_steps: int | None

    @property
    def batch_centres(self) -> int:
        """Tokens a step whose neighbours are predicted."""
        return max(self.batch_pairs // (2 * self.window), 1)

    def steps(self, centres: int) -> int:
        """Steps in all, for a text with so many new tokens."""
        steps = self.epochs * -(-centres // self.batch_centres)
        return steps if self.max_steps is None else min(steps, self.max_steps)


def convex_rows(left: Tensor, right: Tensor, old_rows: Tensor) -> Tensor:
    """softmax(A1 A2) E_old for some rows of A1: [M, R], [R, n_old], [n_old, D] -> [M, D]."""
    return torch.softmax(left @ right, dim=1) @ old_rows


@dataclass(frozen=True)
class Text:
    """The tokens of a text, numbered so that the n_new new tokens come first and the n_fixed copied ones after them.

    Attributes:
        tokens: int64 [T], -1 between documents, at least a window's width of them there and at both ends.
        new: n_new.
        size: n_new + n_fixed.
    """

    tokens: np.ndarray
    new: int
    size: int

    @classmethod
    def of(cls, documents: Sequence[np.ndarray], *, new: int, size: int, window: int) -> Text:
        """The text of documents given as int64 [T] each; -1 is left out, and so is a document of a single token."""
        gap = np.full(window, -1, dtype=np.int64)
        parts = [gap]
        for document in (document[document >= 0] for document in documents):
            if len(document) > 1:
                parts += [document, gap]
        return cls(np.concatenate(parts), new, size)

    @property
    def counts(self) -> np.ndarray:
        """int64 [size]: occurrences of each token."""
        return np.bincount(self.tokens[self.tokens >= 0], minlength=self.size)

    @property
    def centres(self) -> np.ndarray:
        """int64: the positions of new tokens."""
        return np.flatnonzero((self.tokens >= 0) & (self.tokens < self.new))


def train(
    text: Text,
    old_rows: Tensor,
    fixed_rows: Tensor,
    initial_left: Tensor,
    schedule: Schedule,
    seed: int,
    after_step: Callable[[int, float], None],
) -> tuple[Tensor, Tensor]:
    """The rows of the new tokens, float32 [n_new, D], and which of them stood in the text that was read, bool [n_new].

    Args:
        old_rows: [n_old, D], what the new rows are made of.
        fixed_rows: [n_fixed, D], of the copied tokens.
        initial_left: float32 [n_new, R], where A1 starts.
        seed: of A2, the order of the text and the negative tokens.
        after_step: called with the number of steps made, from 1, and the mean loss of a pair; may raise to stop.
    """
    device = old_rows.device
    old_rows, fixed_rows = old_rows.float(), fixed_rows.float()
    generator = torch.Generator().manual_seed(seed)
    left = initial_left.to(device, copy=True).requires_grad_()
    right = torch.rand(schedule.rank, len(old_rows), generator=generator).to(device).requires_grad_()
    optimiser = torch.optim.Adam([left, right], lr=schedule.learning_rate)
    trained = torch.zeros(len(left), dtype=torch.bool)
    for step, batch in enumerate(_batches(text, schedule, np.random.default_rng(seed)), start=1):
        centre, neighbour, negatives = (torch.from_numpy(ids) for ids in batch)
        needed, places = torch.cat([centre, neighbour, negatives.flatten()]).unique(return_inverse=True)
        rows = _rows(needed.to(device), left, right, old_rows, fixed_rows)[places.to(device)]
        loss = pair_loss(*rows.split([len(centre), len(neighbour), negatives.numel()]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        trained[centre] = True
        after_step(step, loss.item())
    with torch.no_grad():
        rows = torch.cat([convex_rows(block, right, old_rows).cpu() for block in left.split(_ROW_BLOCK)])
    return rows, trained


def pair_loss(centre: Tensor, neighbour: Tensor, negatives: Tensor) -> Tensor:
    """The mean loss of P pairs: [P, D], [P, D] and the negatives of each pair one after the other, [P * n, D]."""
    positive = (centre * neighbour).sum(dim=1)
    against = (centre * negatives.unflatten(0, (len(centre), -1)).sum(dim=1)).sum(dim=1)
    return -(F.logsigmoid(positive) + F.logsigmoid(-against)).mean()


def _rows(needed: Tensor, left: Tensor, right: Tensor, old_rows: Tensor, fixed_rows: Tensor) -> Tensor:
    """The present rows of some tokens, given in ascending order."""
    new = int((needed < len(left)).sum())
    blocks = left[needed[:new]].split(_ROW_BLOCK)
    # The weights over all old rows are made again for the gradient: kept, they would fill the memory.
    made = [checkpoint(convex_rows, block, right, old_rows, use_reentrant=False) for block in blocks]
    return torch.cat([*made, fixed_rows[needed[new:] - len(left)]])


def _batches(
    text: Text, schedule: Schedule, generator: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of each step: new tokens [P], neighbours [P] and negatives [P, n]; a new order of the text each epoch."""
    offsets = np.concatenate([np.arange(-schedule.window, 0), np.arange(1, schedule.window + 1)])
    bounds = np.cumsum(text.counts**_NEGATIVE_POWER)
    centres = text.centres
    remaining = schedule.steps(len(centres))
    for _ in range(schedule.epochs):
        order = generator.permutation(centres)
        for start in range(0, len(order), schedule.batch_centres):
            if not remaining:
                return
            remaining -= 1
            positions = order[start : start + schedule.batch_centres]
            around = text.tokens[positions[:, None] + offsets]
            centre = np.repeat(text.tokens[positions], (around >= 0).sum(axis=1))
            draws = generator.random((len(centre), schedule.negatives)) * bounds[-1]
            negatives = np.minimum(np.searchsorted(bounds, draws, side="right"), text.size - 1)
            yield centre, around[around >= 0], negatives
