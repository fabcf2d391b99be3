"""A vocabulary read backwards: from bytes, or from what a person calls a token, to its id."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from alignment.byte_view import ByteView
from alignment.token_table import TokenKind

_PREFERENCE = (TokenKind.TEXT, TokenKind.ADDED, TokenKind.BYTE_FALLBACK)


class UnknownToken(ValueError):
    """A token that somebody named is not in the vocabulary."""


class TokenIndex:
    """The ids of the tokens that spell given bytes.

    Args:
        rows: number of rows of the model's matrix; ids from there on have no row and are left out. None for all.
    """

    def __init__(self, view: ByteView, rows: int | None = None) -> None:
        self.view = view
        self.rows = view.vocab_size if rows is None else min(rows, view.vocab_size)
        self._ids: dict[TokenKind, dict[bytes, list[int]]] = {}
        for kind in _PREFERENCE:
            ids: dict[bytes, list[int]] = {}
            for token in np.flatnonzero(view.kinds[: self.rows] == kind).tolist():
                ids.setdefault(view.token_bytes(token) or b"", []).append(token)
            self._ids[kind] = ids

    def of_kind(self, kind: TokenKind, data: bytes) -> list[int]:
        """The ids of one kind that spell exactly ``data``, lowest first; an empty list if there is none."""
        return self._ids[kind].get(data, [])

    def find(self, data: bytes) -> int | None:
        """The token that spells exactly ``data``.

        Of several, the model's own entries go before added tokens, those before byte-fallback ones, then low ids.
        """
        return next((ids[0] for kind in _PREFERENCE if (ids := self.of_kind(kind, data))), None)

    @cached_property
    def strings(self) -> dict[str, int]:
        """The string of every special and added token -> its id; special tokens go before others, then low ids."""
        strings = {string: token for token, string in self.view.special_tokens.items() if token < self.rows}
        for data, ids in self._ids[TokenKind.ADDED].items():
            strings.setdefault(data.decode(errors="replace"), ids[0])
        return strings

    def named(self, name: str | int) -> int:
        """The id of a token given as an id, as the string of a special token, or as the text that it spells.

        Raises:
            UnknownToken: there is no such token, or it has no row.
        """
        if isinstance(name, int):
            if 0 <= name < self.rows and self.view.kinds[name] != TokenKind.MISSING:
                return name
            raise UnknownToken(
                f"tokenizer {self.view.name!r} has no token with the id {name} and a row: ids are in [0, {self.rows})"
            )
        token = self.strings.get(name)
        token = self.find(name.encode()) if token is None else token
        if token is None:
            spaced = [other for other in (f" {name}", name.lstrip(" ")) if self.find(other.encode()) is not None]
            near = spaced or difflib.get_close_matches(name, self.strings, n=3)
            hint = f"; close to it are {', '.join(map(repr, near))}" if near else ""
            raise UnknownToken(
                f"tokenizer {self.view.name!r} has no token {name!r}{hint}. "
                "Write a special token as its string and any other as its text, a leading space included."
            )
        return token

    def have_rows(self, ids: Iterable[int]) -> bool:
        """Whether every one of ``ids`` has a row."""
        return all(token < self.rows for token in ids)
