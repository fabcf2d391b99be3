"""What else one pass over the vocabulary can tell about every position: masses of groups of tokens, and entropy.

Legend: R rows (token positions), V vocabulary, G groups of tokens, b rows of a block, n tokens of all groups together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from losses.predictions import LinearHead
from losses.rowwise import rowwise_values


class VocabularyScores(NamedTuple):
    """Readings of R next-token distributions, differentiable in the head.

    Attributes:
        group_logp: [R, G] log of the probability that the next token is in the group, at most 0; None if no groups were
            given.
        entropy: [R] in nats; None if it was not asked for.
    """

    group_logp: Tensor | None
    entropy: Tensor | None


def vocabulary_scores(
    head: LinearHead, *, groups: Tensor | None = None, entropy: bool = False, block_rows: int | None = None
) -> VocabularyScores:
    """Read group masses and entropy off ``head`` in one pass over its logits, a block of rows at a time.

    Every group has a maximum of its own, so that a mass far below float32's smallest number has a logarithm and a
    gradient. ``token_scores`` is the faster way to labels and one group.

    Args:
        head: of R rows; gradients reach ``hidden``, ``weight`` and ``bias``, in a second pass over the logits.
        groups: bool [G, V], the tokens of every group; groups may overlap.
        entropy: whether it is wanted.
        block_rows: rows of a block; by default as many as fit the budget of ``losses.head_arithmetic``.

    Returns:
        Readings in float32 (float64 for float64 hidden states).

    Raises:
        ValueError: nothing is asked for, ``groups`` has another shape, or a group is empty.
    """
    if groups is None and not entropy:
        raise ValueError("vocabulary_scores was asked for nothing: give it groups, or entropy=True")
    num_groups = 0 if groups is None else len(groups)
    if groups is not None:
        _check_groups(groups, head.vocab_size)
        group_of, tokens = groups.nonzero(as_tuple=True)

    def readings(rows: slice, logits: Sequence[Tensor]) -> Tensor:
        logp = logits[0].log_softmax(-1)
        columns = [] if groups is None else [_group_log_mass(logp, group_of, tokens, num_groups)]
        if entropy:
            columns.append(-(logp.exp() * logp).sum(-1, keepdim=True))
        return torch.cat(columns, dim=1)

    values = rowwise_values(readings, [head], block_rows=block_rows)
    return VocabularyScores(
        None if groups is None else values[:, :num_groups], values[:, num_groups] if entropy else None
    )


def _group_log_mass(logp: Tensor, group_of: Tensor, tokens: Tensor, num_groups: int) -> Tensor:
    """Log-sum-exp [b, G] of ``logp`` [b, V] over each group, whose members are pairs (``group_of``, ``tokens``) [n]."""
    members = logp.index_select(1, tokens)
    index = group_of.expand_as(members)
    peak = logp.new_full((len(logp), num_groups), -torch.inf)
    peak = peak.scatter_reduce(1, index, members.detach(), "amax")
    mass = torch.zeros_like(peak).scatter_add(1, index, (members - peak.gather(1, index)).exp())
    # Rounding can leave the group of all tokens a little above certainty.
    return (mass.log() + peak).clamp(max=0)


def _check_groups(groups: Tensor, vocab_size: int) -> None:
    if groups.ndim != 2 or groups.shape[1] != vocab_size or groups.dtype != torch.bool:
        raise ValueError(
            f"groups are {groups.dtype} {tuple(groups.shape)}; expected bool [G, {vocab_size}], one row a group"
        )
    empty = (~groups.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"the token groups {empty[:5]} are empty: their log-probability would be -inf everywhere")
