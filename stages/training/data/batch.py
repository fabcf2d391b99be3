"""One forward pass's worth of windows: padded token arrays of both sides, aligned by chunk number.

Legend: B rows, T tokens (padded), C chunks (padded). A row holds one window or, packed, several one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from losses.chunks import shift_labels
from stages.training.data.windows import Side, Window


@dataclass(frozen=True)
class SideBatch:
    """Padded token arrays of one side.

    Attributes:
        ids: int64 [B, T]; padding holds id 0.
        attention: int64 [B, T]; 1 on tokens, 0 on padding.
        labels: int64 [B, T]; the token to predict from position t, that is ``ids[:, t + 1]``; -100 where there is none.
        chunk: int64 [B, T]; the token's chunk, -1 for padding and for tokens of no chunk. Chunks of a row's later
            windows count on from those of its earlier ones.
        scored: bool [B, T]; True where the token's own log-probability exists (never at the first token of a window).
        lengths: int64 [B, T]; bytes of text that the token stands for, 0 for special tokens and padding.
        positions: int64 [B, T]; each token's place in its window, counted on over padding.
        packed: whether rows may hold several windows, between which a model must not look.
        entries: int64 [B, T], where each token's scores lie in a score store, -1 on padding; None where a model scores
            them. Of numpy and never on a device: files are read by it.
    """

    ids: Tensor
    attention: Tensor
    labels: Tensor
    chunk: Tensor
    scored: Tensor
    lengths: Tensor
    positions: Tensor
    packed: bool = False
    entries: np.ndarray | None = None

    @property
    def window(self) -> Tensor:
        """int64 [B, T]: the window that each token belongs to, numbered over all rows in their order; -1 on padding."""
        number = self._starts.flatten().cumsum(0).view(self.ids.shape) - 1
        return number.masked_fill(self.attention == 0, -1)

    @property
    def num_windows(self) -> int:
        """How many windows the rows hold."""
        return int(self._starts.sum()) if self.packed else len(self.ids)

    @property
    def _starts(self) -> Tensor:
        return (self.positions == 0) & (self.attention > 0)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of windows, both sides aligned by chunk number.

    Attributes:
        student, teacher: the two sides; no teacher where no objective needs one.
        num_chunks: C, of the row that has most.
        teacher_number: which of the stage's teachers the teacher's side is for; one micro-batch has one teacher.
    """

    student: SideBatch
    teacher: SideBatch | None
    num_chunks: int
    teacher_number: int = 0


def collate(windows: Sequence[Window]) -> Batch:
    """Pad windows into one micro-batch, a row each."""
    return _batch([[window] for window in windows], packed=False)


def collate_packed(rows: Sequence[Sequence[Window]]) -> Batch:
    """Put every row's windows one after the other, and pad the rows into one micro-batch."""
    return _batch(rows, packed=True)


def _batch(rows: Sequence[Sequence[Window]], *, packed: bool) -> Batch:
    any_window = rows[0][0]
    chunks = [list(accumulate((window.num_chunks for window in row), initial=0)) for row in rows]
    students = [[window.student for window in row] for row in rows]
    teachers = [[window.teacher for window in row] for row in rows] if any_window.teacher is not None else None
    return Batch(
        student=_pad(students, chunks, packed),
        teacher=None if teachers is None else _pad(teachers, chunks, packed),
        num_chunks=max(1, *(row[-1] for row in chunks)),  # what sums over chunks needs a column
        teacher_number=any_window.teacher_number,
    )


def _pad(rows: Sequence[Sequence[Side]], first_chunks: Sequence[Sequence[int]], packed: bool) -> SideBatch:
    """The arrays of one side; the chunks of window n in row r count from ``first_chunks[r][n]``."""
    length = max(sum(len(side.ids) for side in row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    attention, chunk, lengths = torch.zeros_like(ids), torch.full_like(ids, -1), torch.zeros_like(ids)
    positions = torch.arange(length).repeat(len(rows), 1)
    for row, (sides, firsts) in enumerate(zip(rows, first_chunks, strict=True)):
        start = 0
        for side, first in zip(sides, firsts, strict=False):
            stop = start + len(side.ids)
            ids[row, start:stop] = torch.from_numpy(side.ids)
            chunk[row, start:stop] = torch.from_numpy(np.where(side.chunk >= 0, side.chunk + first, -1))
            lengths[row, start:stop] = torch.from_numpy(side.lengths)
            positions[row, start:] = torch.arange(length - start)
            start = stop
        attention[row, :start] = 1
    scored = (chunk >= 0) & (positions > 0)
    labels = shift_labels(ids, scored)
    return SideBatch(ids, attention, labels, chunk, scored, lengths, positions, packed, _entries(rows, ids.shape))


def _entries(rows: Sequence[Sequence[Side]], shape: tuple[int, int]) -> np.ndarray | None:
    """``SideBatch.entries`` of rows padded to ``shape``."""
    if all(side.first_entry is None for row in rows for side in row):
        return None
    entries = np.full(shape, -1, dtype=np.int64)
    for row, sides in enumerate(rows):
        start = 0
        for side in sides:
            if side.first_entry is not None:
                entries[row, start : start + len(side.ids)] = side.first_entry + np.arange(len(side.ids))
            start += len(side.ids)
    return entries


def to_device(batch: SideBatch, device: torch.device) -> SideBatch:
    """``batch`` with its tensors on ``device``."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(
        batch,
        **{name: each.to(device, non_blocking=True) for name, each in values.items() if isinstance(each, Tensor)},
    )
