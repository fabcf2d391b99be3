"""How much text, how many tokens and how many chunks a micro-batch holds: what speeds and lengths are made from."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.training.data.batch import Batch, SideBatch


def contents(batch: Batch, num_teachers: int) -> dict[str, Tensor]:
    """Additive facts of one micro-batch, on its device, with the same names and shapes for every batch of a stage.

    Args:
        batch: its teacher's side counts for teacher ``batch.teacher_number``.
        num_teachers: of the stage; the facts of a teacher's side are vectors [num_teachers].

    Returns:
        ``bytes`` of text and, of them, ``chunk_bytes`` in chunks; ``chunks``; and of either side (``student_…``,
        ``teacher_…``) ``tokens``, ``predictions`` (tokens with a label), ``pairs`` (of a token and one that it attends
        to, itself included) and ``chunk_tokens`` (tokens in chunks). int64.
    """
    student = batch.student
    in_chunks = student.chunk >= 0
    facts = {
        "bytes": student.lengths.sum(),
        "chunk_bytes": (student.lengths * in_chunks).sum(),
        "chunks": _chunk_starts(student.chunk).sum(),
        **{f"student_{name}": value for name, value in _side(student).items()},
    }
    nothing = dict.fromkeys(("tokens", "predictions", "pairs", "chunk_tokens"), student.ids.new_zeros(()))
    teacher = nothing if batch.teacher is None else _side(batch.teacher)
    own = torch.arange(num_teachers, device=student.ids.device) == batch.teacher_number
    return facts | {f"teacher_{name}": value * own for name, value in teacher.items()}


def _side(side: SideBatch) -> dict[str, Tensor]:
    return {
        "tokens": side.attention.sum(),
        "predictions": (side.labels >= 0).sum(),
        "pairs": ((side.positions + 1) * side.attention).sum(),
        "chunk_tokens": (side.chunk >= 0).sum(),
    }


def _chunk_starts(chunk: Tensor) -> Tensor:
    """bool [B, T]: the first token of every chunk; chunks with the same number follow one another in no row."""
    before = torch.nn.functional.pad(chunk[:, :-1], (1, 0), value=-1)
    return (chunk >= 0) & (chunk != before)
