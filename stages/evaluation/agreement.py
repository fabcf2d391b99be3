"""How close a model stays to its teacher, chunk by chunk.

A chunk is the text between two neighbouring byte boundaries that the teacher's and the model's tokens share. Both
models give each chunk a log-probability (the sum over its tokens); their mean absolute difference, in nats, is the
agreement, and 0 is perfect. Top-1 compares what each model would write next at the start of a chunk: the two greedy
tokens agree when the bytes of one are a prefix of the other's. A special token agrees only with a special token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from alignment.spans import align

TokenBytes = Callable[[int], bytes | None]


class ScoredTokens(NamedTuple):
    """The scored tokens of one window: byte ``ends``, ``logp`` in nats, ``greedy`` token ids; [N] each."""

    ends: np.ndarray
    logp: np.ndarray
    greedy: np.ndarray


class Agreement(NamedTuple):
    """Sums over chunks: their number, |Δ log p| in nats, and on how many the greedy tokens agree."""

    chunks: int
    absolute_difference: float
    same_top1: int


def greedy_agree(first: bytes | None, second: bytes | None) -> bool:
    """Whether one greedy token's bytes are a prefix of the other's; None stands for a special token."""
    if not first or not second:
        return not first and not second
    return first.startswith(second) or second.startswith(first)


def window_agreement(
    teacher: ScoredTokens, student: ScoredTokens, teacher_bytes: TokenBytes, student_bytes: TokenBytes, begin: int
) -> Agreement:
    """Compare two models on the scored part of one window, which starts at byte ``begin`` for both.

    Raises:
        ValueError: the two sides do not spell the same bytes, so their chunks are not the same text.
    """
    if teacher.ends[-1] != student.ends[-1]:
        raise ValueError(f"the teacher's tokens end at byte {teacher.ends[-1]}, the student's at {student.ends[-1]}")
    alignment = align(teacher.ends - begin, student.ends - begin)
    chunks = alignment.num_chunks
    first_tokens = []
    sums = []
    for chunk_ids, side in ((alignment.teacher_chunk, teacher), (alignment.student_chunk, student)):
        if (chunk_ids < 0).any():
            raise ValueError("a scored token belongs to no chunk: the two sides do not cover the same bytes")
        sums.append(np.bincount(chunk_ids, weights=side.logp.astype(np.float64), minlength=chunks))
        first_tokens.append(np.searchsorted(chunk_ids, np.arange(chunks)))
    pairs = zip(teacher.greedy[first_tokens[0]].tolist(), student.greedy[first_tokens[1]].tolist(), strict=True)
    same = sum(greedy_agree(teacher_bytes(left), student_bytes(right)) for left, right in pairs)
    return Agreement(chunks, float(np.abs(sums[0] - sums[1]).sum()), same)
