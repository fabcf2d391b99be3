"""Positions of two tokenizations whose next-token distributions are compared, for losses that ignore token identity.

Legend: B rows of one or several sequences, T tokens (each side its own), N pairs of positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losses.chunks import TokenizedSide, aligned_rows, scored_rows


class PositionPairs(NamedTuple):
    """N positions of either model, compared one with one.

    Attributes:
        teacher, student: int64 [N], flat positions in [B * T] whose predictions are compared.
        sequence: int64 [N], the sequence of each pair (``TokenizedSide.window``), ascending.
    """

    teacher: Tensor
    student: Tensor
    sequence: Tensor


def aligned_positions(teacher: TokenizedSide, student: TokenizedSide, num_chunks: int) -> PositionPairs:
    """The positions that predict the start of the same chunk: both models have read exactly the same bytes."""
    rows = aligned_rows(teacher, student, num_chunks)
    return PositionPairs(rows.teacher, rows.student, student.window.flatten()[rows.student])


def paired_positions(teacher: TokenizedSide, student: TokenizedSide) -> PositionPairs:
    """The positions that predict the i-th scored token of either side, up to the shorter side's number of them."""
    ranks, rows, counts = [], [], []
    size = teacher.window.numel()  # there are no more sequences than tokens
    for side in (teacher, student):
        predicting, tokens = scored_rows(side.scored)
        sequence = side.window.flatten()[tokens]
        count = torch.bincount(sequence, minlength=size)
        first = count.cumsum(0) - count
        ranks.append((sequence, torch.arange(len(tokens), device=tokens.device) - first[sequence]))
        rows.append(predicting)
        counts.append(count)
    shared = torch.minimum(*counts)
    kept = [rank < shared[sequence] for sequence, rank in ranks]
    return PositionPairs(rows[0][kept[0]], rows[1][kept[1]], ranks[1][0][kept[1]])
