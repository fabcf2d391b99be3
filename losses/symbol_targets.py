"""Targets made of masses that coverings give: a cell for every next symbol, and one complement for everything else.

Legend: b rows of a block, S symbols.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losses.coverings import NextSymbols


class SymbolTargets(NamedTuple):
    """Distributions of the next symbol that add up to 1, or are 0 throughout where nothing is known.

    Attributes:
        cells: [b, S], probability of each symbol that is known to come next.
        complement: [b], probability of what is no symbol, or not known to be a certain one.
        lower_bound: bool [b], whether cells may be too small because a covering ended.
    """

    cells: Tensor
    complement: Tensor
    lower_bound: Tensor


def symbol_targets(masses: NextSymbols, dtype: torch.dtype) -> SymbolTargets:
    """Divide the masses by their sum.

    Where every symbol has a mass of its own, none is left to stand for the complement, and all share it.
    """
    complement = torch.where((masses.mass > 0).all(1), 0, masses.ended + masses.unspelled)
    total = masses.mass.sum(1) + complement
    total = torch.where(total > 0, total, 1)
    cells = (masses.mass / total[:, None]).to(dtype)
    return SymbolTargets(cells, (complement / total).to(dtype), masses.ended > 0)


def symbol_divergence(targets: SymbolTargets, logits: Tensor) -> Tensor:
    """KL divergence [b] of a model's next-symbol distribution, given its logits [b, S], from the targets.

    The complement is compared with the model's probability of all symbols without a cell. 0 for a row without target.
    """
    cells, complement, _ = targets
    logp = logits.log_softmax(1)
    explicit = (torch.xlogy(cells, cells) - cells * logp).sum(1)
    # Rows without a complement keep all their symbols here, so that the unused branch has a finite gradient.
    outside = logp.masked_fill((cells > 0) & (complement > 0)[:, None], -torch.inf).logsumexp(1)
    return explicit + torch.xlogy(complement, complement) - complement * outside
