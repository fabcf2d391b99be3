"""Divergence between two models over cells: groups of tokens, or of continuations, that both models can be asked about.

Legend: R rows, N cells.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cell_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of two non-negative measures, each made to add up to 1 first.

    It is at least 0, and 0 just where the two are proportional; a row that is 0 everywhere on one side gives the
    teacher's row nothing to say or the student's nothing to change, and has a finite value and gradient.

    Args:
        teacher: [R, N] masses of the cells, without gradient.
        student: [R, N] masses of the cells.

    Returns:
        [R], in nats.
    """
    tiny = torch.finfo(student.dtype).tiny
    target = teacher / teacher.sum(-1, keepdim=True).clamp(min=tiny)
    logp = student.clamp(min=tiny).log() - student.sum(-1, keepdim=True).clamp(min=tiny).log()
    return (torch.xlogy(target, target) - target * logp).sum(-1)


def pooled(masses: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """Add up ``masses`` [R, M] within cells: [R, num_cells].

    Args:
        cells: int64 [M] or [R, M], the cell of each mass.
    """
    return masses.new_zeros((len(masses), num_cells)).scatter_add(1, cells.expand(masses.shape), masses)
