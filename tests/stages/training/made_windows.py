"""Windows made of numbers instead of text."""

from __future__ import annotations

import numpy as np

from stages.training.data.windows import Side, Window


def window(number: int, student: int, teacher: int | None = None, teacher_number: int = 0) -> Window:
    """A window of so many tokens on either side; ids, 1 + 100 * number and on, name it and their place in it."""
    chunks = min(student, student if teacher is None else teacher) - 1
    sides = [None if tokens is None else _side(tokens, number) for tokens in (student, teacher)]
    for each in filter(None, sides):
        each.chunk[each.chunk >= chunks] = -1
    return Window(*sides, num_chunks=chunks, teacher_number=teacher_number)


def _side(tokens: int, number: int) -> Side:
    """Tokens that are chunks of their own, but for the first."""
    place = np.arange(tokens)
    return Side(ids=1 + 100 * number + place, chunk=place - 1, lengths=np.minimum(place, 1))
