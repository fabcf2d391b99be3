"""Universal logit distillation (ULD, arXiv 2402.12030): distributions compared without token identity.

At every compared position both next-token distributions are sorted in descending order, the shorter one is padded with
zeros, and the loss is the L1 distance of what results: a Wasserstein distance in which every token is as far from every
other. It sees the shape of the teacher's distribution alone; two different certain predictions are at distance 0.

Teacher signal: the whole distribution. Unit: a compared position.

Different from the paper and the authors' code on purpose: which positions are compared is the caller's choice
(``losses.position_pairs``; the paper's is ``paired_positions``); the sum is divided by the number of positions of the
whole step, where the released code divides by those of each sequence; cross-entropy is a loss of its own.

Legend: N compared positions, b rows of a block, V and W the two vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from losses.output import LossOutput, ratio
from losses.predictions import LinearHead, Predictions
from losses.rowwise import rowwise_loss


def sorted_distance(teacher: Tensor, student: Tensor, top_k: int | None = None) -> tuple[Tensor, Tensor]:
    """L1 distance of two sorted vectors of masses, a row at a time; differentiable in both.

    Args:
        teacher: [b, V] masses, at least 0.
        student: [b, W] masses.
        top_k: compare only so many of the largest, and what is left as one mass. By the triangle inequality this is
            never above the exact distance, and it is 0 for equal rows too.

    Returns:
        The distance [b], and how far below the exact one it may be [b]: twice the smaller of the two masses left.
    """
    if top_k is None:
        rows = [masses.sort(-1, descending=True).values for masses in (teacher, student)]
    else:
        rows = [_with_rest(masses, top_k) for masses in (teacher, student)]
    longest = max(row.shape[-1] for row in rows)
    teacher, student = (pad(row, (0, longest - row.shape[-1])) for row in rows)
    distance = (teacher - student).abs().sum(-1)
    if top_k is None:
        return distance, torch.zeros_like(distance)
    return distance, 2 * torch.minimum(teacher[:, -1], student[:, -1])


def uld_loss(teacher: Predictions, student: LinearHead, *, top_k: int | None = None) -> LossOutput:
    """Sorted L1 distance of whole distributions, summed over positions.

    Args:
        teacher: at the N compared positions.
        student: at the same positions, in the same order.
        top_k: see ``sorted_distance``; None compares all tokens.

    Returns:
        The sum over N positions, between 0 and 2 each. With ``top_k`` also the metric ``truncation``: the mean of how
        far below the exact distance a position's may be.

    Raises:
        ValueError: the teacher's distributions are not whole.
    """
    if not teacher.complete:
        raise ValueError("ULD compares whole distributions, but the teacher gives its most probable tokens only")

    def losses_of(rows: slice, logits: Sequence[Tensor], _: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        student_probs = logits[0].log_softmax(-1).exp()
        distance, slack = sorted_distance(teacher.log_probs(rows).exp(), student_probs, top_k)
        return distance, {} if top_k is None else {"truncation": ratio(slack.sum(), slack.new_tensor(len(slack)))}

    total, metrics = rowwise_loss(losses_of, [student])
    return LossOutput(total, torch.tensor(len(student), device=total.device), metrics)


def _with_rest(masses: Tensor, top_k: int) -> Tensor:
    """The ``top_k`` largest masses in descending order, then the sum of all others: [b, top_k + 1]."""
    largest = masses.topk(min(top_k, masses.shape[-1])).values
    rest = (masses.sum(-1, keepdim=True) - largest.sum(-1, keepdim=True)).clamp(min=0)
    return torch.cat([pad(largest, (0, top_k - largest.shape[-1])), rest], -1)
