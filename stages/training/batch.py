"""One forward pass's worth of windows: padded token arrays of both sides, aligned by chunk number.

Legend: B windows, T tokens (padded), C chunks (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from losses.chunks import shift_labels
from stages.training.windows import Side, Window


@dataclass(frozen=True)
class SideBatch:
    """Padded token arrays of one side.

    Attributes:
        ids: int64 [B, T]; padding holds id 0.
        attention: int64 [B, T]; 1 on tokens, 0 on padding.
        labels: int64 [B, T]; the token to predict from position t, that is ``ids[:, t + 1]``; -100 where there is none.
        chunk: int64 [B, T]; the token's chunk, -1 for padding and for tokens of no chunk.
        scored: bool [B, T]; True where the token's own log-probability exists (never at index 0).
        lengths: int64 [B, T]; bytes of text that the token stands for, 0 for special tokens and padding.
    """

    ids: Tensor
    attention: Tensor
    labels: Tensor
    chunk: Tensor
    scored: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch of windows, both sides aligned by chunk number.

    Attributes:
        student, teacher: the two sides; no teacher where no objective needs one.
        num_chunks: C, of the window that has most.
        teacher_number: which of the stage's teachers the teacher's side is for; one micro-batch has one teacher.
    """

    student: SideBatch
    teacher: SideBatch | None
    num_chunks: int
    teacher_number: int = 0


def collate(windows: Sequence[Window]) -> Batch:
    """Pad windows into one micro-batch."""
    teachers = [window.teacher for window in windows if window.teacher is not None]
    return Batch(
        student=_pad([window.student for window in windows]),
        teacher=_pad(teachers) if teachers else None,
        num_chunks=max(window.num_chunks for window in windows),
    )


def _pad(sides: Sequence[Side]) -> SideBatch:
    length = max(len(side.ids) for side in sides)
    ids = torch.zeros(len(sides), length, dtype=torch.int64)
    attention, chunk, lengths = torch.zeros_like(ids), torch.full_like(ids, -1), torch.zeros_like(ids)
    for row, side in enumerate(sides):
        ids[row, : len(side.ids)] = torch.from_numpy(side.ids)
        attention[row, : len(side.ids)] = 1
        chunk[row, : len(side.ids)] = torch.from_numpy(side.chunk)
        lengths[row, : len(side.ids)] = torch.from_numpy(side.lengths)
    scored = chunk >= 0
    scored[:, 0] = False
    return SideBatch(ids, attention, shift_labels(ids, scored), chunk, scored, lengths)


def to_device(batch: SideBatch, device: torch.device) -> SideBatch:
    """``batch`` with its tensors on ``device``."""
    return SideBatch(*(getattr(batch, name).to(device, non_blocking=True) for name in SideBatch.__dataclass_fields__))
