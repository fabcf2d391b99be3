"""One distribution out of several, in log space.

Legend: M members, R places (each the distribution of one next symbol), V symbols: tokens of a vocabulary, or bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import starmap

import torch
from torch import Tensor

from stages.evaluation.ensembles.options import EnsembleOptions
from stages.stage import StageError


@dataclass(frozen=True)
class Combination:
    """How the members' distributions become one.

    Attributes:
        log_weights: logarithms of the members' weights, which add up to 1; proxy tuning has no use for them.
        combine: log-probabilities [R, V] of each member, one after another, and of each member the log-weights [R] ->
            the ensemble's log-probabilities [R, V].
        by_evidence: whether a member counts for more the better it predicted what came before.
    """

    log_weights: tuple[float, ...]
    combine: Callable[[Iterable[Tensor], Tensor], Tensor]
    by_evidence: bool = False

    @classmethod
    def of(cls, options: EnsembleOptions) -> Combination:
        """The combination that a recipe asks for."""
        weights = options.weights or (1.0,) * len(options.rows)
        log_weights = tuple(math.log(weight / math.fsum(weights)) for weight in weights)
        if options.proxy is not None:
            alpha = options.proxy.alpha
            return cls(log_weights, lambda logps, _: proxy(*logps, alpha=alpha))
        # The mean of logits is that of log-probabilities up to a constant of each place, which normalising removes.
        means = {"arithmetic": arithmetic, "mixture": arithmetic, "geometric": geometric, "logit": geometric}
        return cls(log_weights, means[options.mean or "arithmetic"], by_evidence=options.mean == "mixture")

    def __call__(self, logps: Iterable[Tensor], evidence: Tensor | None = None) -> Tensor:
        """The ensemble's log-probabilities [R, V], in nats.

        Args:
            logps: of each member [R, V], in nats; read once, one after another.
            evidence: [M, R], log-probability in nats that each member gave to what stands before each place; None
                where nothing does. Counts ``by_evidence`` only.

        Raises:
            StageError: at some place no symbol is possible for all members of a product.
        """
        return self.combine(logps, self.posterior(evidence))

    def posterior(self, evidence: Tensor | None) -> Tensor:
        """Log-weights [M, R] ([M, 1] where they are the same everywhere), float64."""
        prior = torch.tensor(self.log_weights, dtype=torch.float64)[:, None]
        if evidence is None or not self.by_evidence:
            return prior
        return (prior.to(evidence.device) + evidence.double()).log_softmax(0)


def arithmetic(logps: Iterable[Tensor], log_weights: Tensor) -> Tensor:
    """log of the weighted mean of probabilities [R, V]; ``log_weights`` [M, R] or [M, 1]."""
    return reduce(torch.logaddexp, starmap(_weighted, zip(logps, log_weights, strict=True)))


def geometric(logps: Iterable[Tensor], log_weights: Tensor) -> Tensor:
    """Normalised product of probabilities [R, V] to the power of their weights; ``log_weights`` [M, R] or [M, 1]."""
    powers = (logp * share.exp().to(logp)[:, None] for logp, share in zip(logps, log_weights, strict=True))
    return _normalised(reduce(torch.add, powers))


def proxy(base: Tensor, expert: Tensor, anti: Tensor, *, alpha: float) -> Tensor:
    """Normalised log p(base) + alpha (log p(expert) - log p(anti)), [R, V] (Liu et al., arXiv 2401.08565).

    What the anti-expert holds for impossible has no ratio; the base alone decides on it.
    """
    if alpha == 0:
        return base
    difference = torch.where(anti.isneginf(), 0.0, expert - anti)
    return _normalised(base + alpha * difference)


def _weighted(logp: Tensor, log_weight: Tensor) -> Tensor:
    return logp + log_weight.to(logp)[:, None]


def _normalised(scores: Tensor) -> Tensor:
    if scores.isneginf().all(-1).any():
        raise StageError("the members of an ensemble agree on no possible next symbol; take mean: arithmetic")
    return scores.log_softmax(-1)
