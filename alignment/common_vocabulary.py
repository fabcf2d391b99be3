"""The tokens that two vocabularies share, as pairs of ids: what losses on a common vocabulary compare.

Legend: N shared tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment.byte_view import ByteView
from alignment.special_tokens import Roles
from alignment.token_index import TokenIndex

_STOPS = ("eos", "end_of_turn", "eot")
"""Roles of tokens that end a text or a turn."""


@dataclass(frozen=True)
class CommonVocabulary:
    """N pairs of tokens that mean the same; no id occurs twice.

    Attributes:
        teacher, student: int64 [N], by ascending student id.
    """

    teacher: np.ndarray
    student: np.ndarray


def common_vocabulary(
    teacher: ByteView, student: ByteView, teacher_roles: Roles, student_roles: Roles
) -> CommonVocabulary:
    """Pair the tokens with exactly the same bytes, and the special tokens that end a text or a turn.

    Of several tokens with the same bytes only the one that encoding uses is paired (``TokenIndex.find``): the others
    never occur in text.
    """
    teacher_index, student_index = TokenIndex(teacher), TokenIndex(student)
    pairs: dict[int, int] = {}
    for token in np.flatnonzero(student.byte_lengths).tolist():
        data = student.token_bytes(token)
        if data and student_index.find(data) == token and (found := teacher_index.find(data)) is not None:
            pairs[token] = found
    taken = set(pairs.values())
    for role in _STOPS:
        ours, theirs = student_roles.get(role), teacher_roles.get(role)
        if ours is not None and theirs is not None and ours not in pairs and theirs not in taken:
            pairs[ours] = theirs
            taken.add(theirs)
    ids = np.array(sorted(pairs.items()), dtype=np.int64).reshape(-1, 2)
    return CommonVocabulary(teacher=ids[:, 1].copy(), student=ids[:, 0].copy())


def stop_ids(view: ByteView, roles: Roles) -> np.ndarray:
    """int64: the special tokens that end a text or a turn, ascending."""
    stops = {roles[role] for role in _STOPS if role in roles}
    return np.array(sorted(token for token in stops if not view.byte_lengths[token]), dtype=np.int64)
