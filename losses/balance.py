"""Weights of several losses, from their gradients.

Every rule here needs only the inner products of the losses' gradients (their Gram matrix) and the losses' values, and
gives one weight a loss. Both add up over micro-batches and processes, so the rules work wherever training does.

Legend: L losses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

EPSILON = 1e-8


class Balancer(Protocol):
    """Sets the weights of L losses, step by step."""

    def weights(self, gram: Tensor, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """Weights [L] of the coming step.

        Args:
            gram: float64 [L, L] inner products of the losses' gradients, of the step before.
            losses: float64 [L] their values at that step.
            present: bool [L], the losses that had something to compare there, which those of a teacher that no text
                was routed to have not: value and gradient are 0, and say nothing. None for all.

        Raises:
            ValueError: a value or a gradient is not finite.
        """

    def state(self) -> list[float] | None:
        """What a checkpoint must hold; None for nothing."""

    def restore(self, state: list[float] | None) -> None:
        """Continue from what ``state`` gave; None goes back to before the first step."""


def gradmag_weights(squared_norms: Tensor, *, preserve_magnitude: bool = True) -> Tensor:
    """Weight each loss by the inverse norm of its gradient (GradMag, alm.md §1.9).

    Args:
        squared_norms: ``[L]``, squared L2 norm of each loss's gradient; add up over shards before calling.
        preserve_magnitude: scale the weights to add up to 1, as the paper does.

    Returns:
        ``[L]`` detached weights. A loss without gradient, or with one that vanishes beside the largest, gets weight 0:
        1 / EPSILON, the formula's value, would silence all others once the weights are scaled.
    """
    norms = squared_norms.detach().sqrt()
    weights = (1 / (norms + EPSILON)).masked_fill(norms <= EPSILON * norms.max(), 0)
    if preserve_magnitude:
        weights = weights / weights.sum().clamp(min=EPSILON)
    return weights


class GradMag:
    """``gradmag_weights`` of the gradients that each loss had when it last had something to compare.

    A loss that had nothing keeps its weight, but for the scale that lets all of them add up to 1; one that never had
    anything has weight 0.
    """

    def __init__(self) -> None:
        self._squared_norms: Tensor | None = None

    def weights(self, gram: Tensor, losses: Tensor, present: Tensor | None = None) -> Tensor:
        check_finite(gram, losses)
        squared_norms = gram.diagonal().clone()
        if present is not None and self._squared_norms is not None:
            squared_norms = torch.where(present, squared_norms, self._squared_norms.to(gram.device))
        self._squared_norms = squared_norms
        return gradmag_weights(squared_norms)

    def state(self) -> list[float] | None:
        """The last squared norm of each loss's gradient."""
        return None if self._squared_norms is None else self._squared_norms.tolist()

    def restore(self, state: list[float] | None) -> None:
        self._squared_norms = None if state is None else torch.tensor(state, dtype=torch.float64)


def gradnorm_slopes(weights: Tensor, norms: Tensor, progress: Tensor, alpha: float) -> Tensor:
    """Slope, in the weights, of ``sum_i |G_i - mean(G) r_i^alpha|`` with ``G_i = w_i * norm_i`` (GradNorm, eq. 2).

    The paper holds ``mean(G) r_i^alpha`` fixed, so that the slope is ``sign(G_i - mean(G) r_i^alpha) * norm_i``.

    Args:
        weights: ``[L]``.
        norms: ``[L]``, L2 norm of each loss's unweighted gradient. A loss without gradient has no part in the means.
        progress: ``[L]``, each loss relative to its first value; r is this over its mean: high where a loss lags.
        alpha: how strongly lagging losses are favoured; 0 gives every loss the same gradient norm.

    Returns:
        ``[L]``; 0 for a loss without gradient.
    """
    active = norms > 0
    count = active.sum().clamp(min=1)
    pulls = weights * norms
    rates = progress / (progress.masked_fill(~active, 0).sum() / count).clamp(min=EPSILON)
    targets = pulls.sum() / count * rates.pow(alpha)
    # A rounding error away from its target a weight is where it should be; Adam would make a whole step of it.
    beside = (pulls - targets).abs() > 1e-9 * targets
    return (pulls - targets).sign() * beside * norms


class GradNorm:
    """Learn the weights so that losses that lag get the larger gradients (Chen et al. 2018, arXiv 1711.02257).

    Each step moves the weights once by Adam along ``gradnorm_slopes`` and scales them to add up to L. Differs from the
    paper in where gradients are measured: all of ours are taken at one place that the caller chooses, one step before.
    A loss that had nothing to compare there is left alone: its weight, but for the sum, and what is remembered of it.

    Args:
        alpha: strength of the balance between the losses' rates of progress.
        learning_rate: of the weights; the paper's 0.025.
    """

    BETAS = (0.9, 0.999)
    SMALLEST_WEIGHT = 1e-4
    """Adam's steps do not know where 0 is, and a negative weight would ascend its loss."""

    def __init__(self, alpha: float = 0.12, learning_rate: float = 2.5e-2) -> None:
        self._alpha = alpha
        self._learning_rate = learning_rate
        # Rows: weights, Adam's two moments and its steps, the losses' first values (0 until there is one); None before
        # the first step.
        self._memory: Tensor | None = None

    def weights(self, gram: Tensor, losses: Tensor, present: Tensor | None = None) -> Tensor:
        check_finite(gram, losses)
        norms, values = gram.diagonal().clamp(min=0).sqrt().double().cpu(), losses.detach().double().cpu()
        if self._memory is None:
            nothing = torch.zeros_like(norms)
            self._memory = torch.stack([torch.ones_like(norms), nothing, nothing, nothing, nothing])
        weights, mean, square, steps, first = self._memory
        first = torch.where(first == 0, values, first)
        progress = (values / first.clamp(min=EPSILON)).clamp(min=0)
        slopes = gradnorm_slopes(weights, norms, progress, self._alpha)
        moved = self._adam_step(weights, mean, square, steps + 1, slopes)
        if present is not None:
            moved = torch.where(present.cpu(), moved, torch.stack([weights, mean, square, steps]))
        weights, *adam = moved
        weights = weights * (len(weights) / weights.sum())
        self._memory = torch.stack([weights, *adam, first])
        return weights.to(gram.device)

    def _adam_step(self, weights: Tensor, mean: Tensor, square: Tensor, steps: Tensor, slopes: Tensor) -> Tensor:
        """Rows [4, L]: the weights, the two moments and the steps after step ``steps`` (from 1) of each loss."""
        mean = mean.lerp(slopes, 1 - self.BETAS[0])
        square = square.lerp(slopes.square(), 1 - self.BETAS[1])
        unbiased_mean = mean / (1 - self.BETAS[0] ** steps)
        unbiased_square = square / (1 - self.BETAS[1] ** steps)
        weights = weights - self._learning_rate * unbiased_mean / (unbiased_square.sqrt() + EPSILON)
        return torch.stack([weights.clamp(min=self.SMALLEST_WEIGHT), mean, square, steps])

    def state(self) -> list[float] | None:
        """Row by row, what is remembered of every loss."""
        return None if self._memory is None else self._memory.flatten().tolist()

    def restore(self, state: list[float] | None) -> None:
        self._memory = None if state is None else torch.tensor(state, dtype=torch.float64).view(5, -1)


def pcgrad_weights(gram: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """Coefficients of the losses' gradients in the sum of their projections (PCGrad, algorithm 1).

    Each gradient is projected in turn onto the normal plane of every other one that it conflicts with. A projection
    adds a multiple of the other gradient, so inner products alone decide the multiples.

    Args:
        gram: float64 ``[L, L]``.
        orders: for each loss, the order in which its gradient meets the others.

    Returns:
        ``[L]``, at least 1 each: no other gradient than the L is in the sum, and none with a minus sign.
    """
    coefficients = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for own, order in zip(coefficients, orders, strict=True):
        for other in order:
            inner, square = own @ gram[:, other], gram[other, other]
            # No conflict is possible with a gradient that is 0, whatever rounding makes of the product.
            if inner < 0 < square:
                own[other] -= inner / square
    return coefficients.sum(0)


class PCGrad:
    """``pcgrad_weights`` of the step before, in an order drawn anew at every step (Yu et al. 2020, arXiv 2001.06782).

    The paper projects the gradients of all parameters; here a conflict is one at the place where the caller takes the
    inner products, and one coefficient a loss holds for all parameters. A loss that had nothing to compare there was in
    conflict with none.

    Args:
        seed: of the orders; step n of every run with this seed draws the same ones.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._steps = 0

    def weights(self, gram: Tensor, losses: Tensor, present: Tensor | None = None) -> Tensor:
        check_finite(gram, losses)
        draw = random.Random(f"{self._seed}/{self._steps}")
        self._steps += 1
        others = [[other for other in range(len(gram)) if other != own] for own in range(len(gram))]
        return pcgrad_weights(gram.cpu(), [draw.sample(each, len(each)) for each in others]).to(gram.device)

    def state(self) -> list[float]:
        """The number of steps."""
        return [float(self._steps)]

    def restore(self, state: list[float] | None) -> None:
        (steps,) = state or [0.0]
        self._steps = int(steps)


def check_finite(gram: Tensor, losses: Tensor) -> None:
    """Refuse gradients or losses from which no weight follows.

    Raises:
        ValueError: a NaN or an infinity; names the loss by its number, from 0.
    """
    broken = ~(gram.diagonal().isfinite() & losses.isfinite())
    if broken.any():
        raise ValueError(
            f"loss {int(broken.nonzero()[0])} of {len(losses)} or its gradient is not finite: the losses cannot be "
            "weighted by their gradients; lower the learning rate or check the data"
        )
