"""What byte-exact targets know of a pair of vocabularies.

Legend: E entries (a teacher token without its first d bytes), V_T and V_S vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

NO_LOGIT = -1e30
"""Logit of a probability of 0; finite, for 0 times infinity is no number."""


@dataclass(frozen=True)
class PrefixTables:
    """The arrays of ``alignment.prefix_table`` as int64 tensors (``student_blank`` bool), and the stop tokens.

    Attributes:
        teacher_stop, student_stop: int64, special tokens that end a text or a turn. All of one side are one event.
    """

    teacher_entry: Tensor
    teacher_length: Tensor
    teacher_order: Tensor
    teacher_start: Tensor
    teacher_end: Tensor
    entry_byte: Tensor
    entry_prefix: Tensor
    entry_piece: Tensor
    entry_completion: Tensor
    student_length: Tensor
    student_order: Tensor
    student_start: Tensor
    student_end: Tensor
    student_key: Tensor
    student_token: Tensor
    student_cell: Tensor
    student_shorter: Tensor
    student_prefix: Tensor
    student_blank: Tensor
    teacher_stop: Tensor
    student_stop: Tensor

    def to(self, device: torch.device) -> Self:
        """The same tables on ``device``."""
        if self.teacher_entry.device == device:
            return self
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    @property
    def residual(self) -> int:
        """Column, after those of the student's tokens, of teacher tokens that no student token is a prefix of."""
        return len(self.student_cell)

    @property
    def special(self) -> int:
        """Column of the teacher's tokens without bytes that the student has no token for."""
        return len(self.student_cell) + 1

    @cached_property
    def root_column(self) -> Tensor:
        """int64 [V_T]: where the mass of a teacher token goes at a boundary of both tokenizations."""
        piece = self.entry_piece[self.teacher_entry]
        column = torch.where(piece < 0, self.residual, piece).masked_fill(self.teacher_length == 0, self.special)
        if len(self.student_stop):
            column[self.teacher_stop] = self.student_stop[0]
        return column

    @cached_property
    def teacher_place(self) -> Tensor:
        """int64 [V_T]: place of every token with bytes in ``teacher_order``; 0 for others."""
        place = torch.zeros_like(self.teacher_entry)
        place[self.teacher_order] = torch.arange(len(self.teacher_order), device=place.device)
        return place

    @cached_property
    def _shared_cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cells of several tokens: the cells [K], their tokens [K, most], and the tokens [M] that are not the cell."""
        cell = self.student_cell.clone()
        cell[self.student_stop] = self.student_stop[:1]
        others = (cell != torch.arange(len(cell), device=cell.device)).nonzero().squeeze(1)
        cells, group = cell[others].unique(return_inverse=True)
        # The n-th token of its group goes to column n; the cell itself is in column 0 and fills the rest.
        by_group = group.argsort(stable=True)
        sizes = torch.bincount(group, minlength=len(cells))
        column = torch.arange(len(others), device=cell.device) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        members = cells[:, None].repeat(1, 1 + int(sizes.max()) if len(sizes) else 1)
        members[group[by_group], 1 + column] = others[by_group]
        return cells, members, others

    def cell_logits(self, logits: Tensor) -> Tensor:
        """Sum a student's probabilities over tokens with the same bytes, and over its stops; differentiable.

        Args:
            logits: [b, V_S], normalised or not.

        Returns:
            [b, V_S]; tokens whose mass is counted at another one have ``NO_LOGIT``.
        """
        cells, members, others = self._shared_cells
        if not len(cells):
            return logits
        repeated = torch.zeros_like(members, dtype=torch.bool)
        repeated[:, 1:] = members[:, 1:] == cells[:, None]
        sums = logits[:, members].masked_fill(repeated, -torch.inf).logsumexp(-1)
        return logits.index_copy(1, cells, sums).index_fill(1, others, NO_LOGIT)
