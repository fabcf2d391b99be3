"""The sparse matrix that carries a student's distribution into the teacher's vocabulary (X-Token, arXiv 2605.21699).

A student token that the teacher has too is carried there whole. Any other is spread over the teacher tokens that spell
it, nearly all of it to the first, which is the one predicted at the same place; and over the teacher tokens that it
begins or continues. A rule of thumb of the paper's, not a probability.

Legend: E entries of the matrix, V_S and V_T vocabulary sizes of student and teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment.vocab import Match, VocabAlignment

MAX_ENTRIES = 4
"""Non-zeros of a row, and pieces of a token that count."""

_FIRST_PIECE = 0.9
_DECAY = 0.1


@dataclass(frozen=True)
class Projection:
    """A matrix [V_S, V_T] as E entries, by ascending student id, then descending weight.

    Attributes:
        student, teacher: int64 [E], row and column.
        weight: float32 [E]; those of a row add up to 1. A token without a counterpart has no entry.
    """

    student: np.ndarray
    teacher: np.ndarray
    weight: np.ndarray


def piece_weights(count: int) -> np.ndarray:
    """float64: the share of each piece of a token that ``count`` pieces spell; those beyond MAX_ENTRIES have none."""
    weights = _FIRST_PIECE * _DECAY ** np.arange(min(count, MAX_ENTRIES))
    return weights / weights.sum()


def projection(student_tokens: VocabAlignment, teacher_tokens: VocabAlignment) -> Projection:
    """Build the matrix from the two vocabularies' decompositions into each other's tokens.

    A row is 1 at its counterpart if it has one: the same bytes, or the same role for special tokens. Else its entries
    are the pieces of the student's token, and every teacher token of which the student's is a piece; the largest
    MAX_ENTRIES of them (of equal ones the lower teacher id), made to add up to 1.

    The released code's "scale trick", an extra last column of weight 0.2, has no reason given and is left out.

    Args:
        student_tokens: the student's tokens made of the teacher's: ``align_vocabularies(teacher, student)``.
        teacher_tokens: the teacher's tokens made of the student's: ``align_vocabularies(student, teacher)``.
    """
    copied = student_tokens.copied
    copies = np.flatnonzero(copied)
    counterparts = student_tokens.pieces[student_tokens.offsets[copies]].astype(np.int64)
    student, teacher, weight = _piece_entries(student_tokens)
    whole, piece, reverse_weight = _piece_entries(teacher_tokens)
    reverse = ~copied[piece]
    spread = _largest_of_rows(
        np.concatenate([student, piece[reverse]]),
        np.concatenate([teacher, whole[reverse]]),
        np.concatenate([weight, reverse_weight[reverse]]),
        columns=teacher_tokens.target_size,
    )
    student = np.concatenate([copies, spread.student])
    order = np.argsort(student, kind="stable")
    return Projection(
        student=student[order],
        teacher=np.concatenate([counterparts, spread.teacher])[order],
        weight=np.concatenate([np.ones(len(copies), np.float32), spread.weight])[order],
    )


def _piece_entries(alignment: VocabAlignment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(token, piece, weight) of every decomposed token's first MAX_ENTRIES pieces."""
    counts = alignment.piece_counts
    token = np.repeat(np.arange(alignment.target_size), counts)
    place = np.arange(len(token)) - np.repeat(alignment.offsets[:-1], counts)
    kept = (alignment.match == Match.PIECES)[token] & (place < MAX_ENTRIES)
    token, place = token[kept], place[kept]
    table = np.zeros((MAX_ENTRIES + 1, MAX_ENTRIES))
    for count in range(1, MAX_ENTRIES + 1):
        table[count, :count] = piece_weights(count)
    weight = table[np.minimum(counts[token], MAX_ENTRIES), place]
    return token, alignment.pieces[kept].astype(np.int64), weight


def _largest_of_rows(student: np.ndarray, teacher: np.ndarray, weight: np.ndarray, *, columns: int) -> Projection:
    """The largest entries of every row after those of one place are added up, made to add up to 1."""
    places, inverse = np.unique(student * columns + teacher, return_inverse=True)
    summed = np.bincount(inverse, weights=weight, minlength=len(places))
    student, teacher = places // columns, places % columns
    order = np.lexsort((teacher, -summed, student))
    student, teacher, summed = student[order], teacher[order], summed[order]
    rank = np.arange(len(student)) - np.searchsorted(student, student)
    kept = rank < MAX_ENTRIES
    student, teacher, summed = student[kept], teacher[kept], summed[kept]
    total = np.bincount(student, weights=summed)
    return Projection(student, teacher, (summed / total[student]).astype(np.float32))
