"""Token ids of one vocabulary carried to another: special tokens by role, all others by exact matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignment.chat.roles import special_roles_and_turns
from alignment.vocab import VocabAlignment

_NO_END = frozenset({"bos", "pad", "unk", "cls", "sep", "mask"})
"""The token that ends a text may also begin one or pad it: those roles say nothing about where generation stops."""

_PHRASES = ("bad_words_ids", "force_words_ids")


@dataclass(frozen=True)
class TokenIds:
    """Where the student's ids are in the target vocabulary.

    Attributes:
        student, target: the two tokenizers.
        alignment: from the student's vocabulary to the target's.
    """

    student: PreTrainedTokenizerBase
    target: PreTrainedTokenizerBase
    alignment: VocabAlignment

    def ends(self, token: int) -> list[int]:
        """The target ids that end what ``token`` ends: a text, a turn. Its exact matches where it has no such role."""
        ends = [role for role, found in self._student_roles.items() if found == token and role not in _NO_END]
        by_role = [self._target_roles[role] for role in ends if role in self._target_roles]
        return list(dict.fromkeys(by_role)) or self.copies(token)

    def copies(self, token: int) -> list[int]:
        """The target ids that are exact matches of ``token``, ascending."""
        return self._copies.get(token, [])

    def carry(self, key: str, value: Any) -> tuple[Any, list[int]]:
        """What the value of a configuration's ``key`` is for the target, and the student's ids without a counterpart.

        An id is carried to its first exact match, each id of a set to all of its matches. A phrase (a sequence of
        ids) with an id that has no match is taken out as a whole. None where nothing is left.
        """
        if isinstance(value, int):
            carried = next(iter(self.copies(value)), None)
        elif key == "sequence_bias":
            entries = [(self._phrases(ids), bias) for ids, bias in value]
            carried = [[ids, bias] for ids, bias in entries if ids] or None
            value = [ids for ids, _ in value]
        elif key in _PHRASES:
            carried = self._phrases(value)
        else:
            carried = sorted({copy for token in value for copy in self.copies(token)}) or None
        return carried, [token for token in dict.fromkeys(_flat(value)) if not self.copies(token)]

    def _phrases(self, value: Sequence[Any]) -> list[Any] | None:
        """A phrase, or phrases nested in any way, in the target vocabulary; None where nothing is left."""
        if all(isinstance(each, int) for each in value):
            copies = [self.copies(token) for token in value]
            return [found[0] for found in copies] if all(copies) else None
        return [kept for each in value if (kept := self._phrases(each))] or None

    @cached_property
    def _copies(self) -> dict[int, list[int]]:
        copies: dict[int, list[int]] = {}
        for target in np.flatnonzero(self.alignment.copied).tolist():
            copies.setdefault(int(self.alignment.pieces_of(target)[0]), []).append(target)
        return copies

    @cached_property
    def _student_roles(self) -> dict[str, int]:
        return special_roles_and_turns(self.student)

    @cached_property
    def _target_roles(self) -> dict[str, int]:
        return special_roles_and_turns(self.target)


def _flat(value: Any) -> Iterator[int]:
    """The ids of an arbitrarily nested list, or a single id."""
    if isinstance(value, int):
        yield value
    else:
        for each in value:
            yield from _flat(each)
