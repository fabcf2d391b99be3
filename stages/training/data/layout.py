"""One step's windows -> the micro-batches of every process.

How windows are laid out in rows, micro-batches and processes changes the padding, and nothing that is computed. Every
process sees all windows of a step and computes the whole layout, so that all agree on it without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from stages.training.data.batch import Batch, collate, collate_packed
from stages.training.data.windows import Side, Window

Row = list[Window]
"""Windows that lie one after the other in one row of a batch."""


def micro_batches(
    windows: Sequence[Window], micro: int | None, rank: int, world_size: int, row_tokens: int | None = None
) -> Iterator[Batch]:
    """This process's share of one global batch.

    All processes get equally many micro-batches, and at the same place those for the same teacher. Rows are dealt out
    by length, the longest first: those of a micro-batch are alike, and two processes differ in tokens by one row at
    most.

    Args:
        windows: of the step.
        micro: rows of one micro-batch; None for all that this process has for a teacher.
        rank, world_size: this process among all.
        row_tokens: most tokens of a row, on either side, into which windows are packed; None for a row a window.
    """
    by_teacher = sorted(windows, key=lambda window: window.teacher_number)
    for _, group in groupby(by_teacher, key=lambda window: window.teacher_number):
        members = list(group)
        rows = [[window] for window in members] if row_tokens is None else pack(members, row_tokens)
        rows.sort(key=_student_tokens, reverse=True)
        rows += [[empty_like(members[0])] for _ in range(-len(rows) % world_size)]
        mine = rows[rank::world_size]
        size = micro or len(mine)
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            yield collate([row[0] for row in part]) if row_tokens is None else collate_packed(part)


def pack(windows: Sequence[Window], row_tokens: int) -> list[Row]:
    """Put windows into few rows: first-fit decreasing in two dimensions, the tokens of either side.

    A row takes at most ``row_tokens`` tokens on either side, but for a window that is longer by itself. First-fit
    decreasing needs at most 11/9 of the fewest possible rows, and one more (Johnson 1973), where one dimension decides,
    as it does for tokenizers that cut text into about equally many tokens.
    """
    order = sorted(range(len(windows)), key=lambda index: -windows[index].tokens)
    rows: list[Row] = []
    room = np.zeros((len(windows), 2), dtype=np.int64)
    for index in order:
        window = windows[index]
        size = np.array([len(window.student.ids), 0 if window.teacher is None else len(window.teacher.ids)])
        fitting = (room[: len(rows)] >= size).all(axis=1).nonzero()[0]
        if len(fitting):
            row = int(fitting[0])
        else:
            row = len(rows)
            rows.append([])
            room[row] = row_tokens
        rows[row].append(window)
        room[row] -= size
    return rows


def _student_tokens(row: Row) -> int:
    return sum(len(window.student.ids) for window in row)


def empty_like(window: Window) -> Window:
    """One token to read on either side, and nothing to learn: fills up rows so that they divide over processes."""
    token = np.zeros(1, dtype=np.int64)
    side = Side(ids=token, chunk=token - 1, lengths=token)
    return Window(
        student=side,
        teacher=None if window.teacher is None else side,
        num_chunks=0,
        teacher_number=window.teacher_number,
    )
