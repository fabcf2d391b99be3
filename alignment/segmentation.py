"""Any byte string as the tokens of a tokenizer, also where the bytes are no valid UTF-8 and no text can be encoded."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from alignment.byte_view import ByteView, InexactEncoding
from alignment.token_codecs import UnsupportedTokenizer
from alignment.token_table import TokenKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Merges = Mapping[tuple[int, int], tuple[int, int]]
"""Byte-pair merges as ids: (left, right) -> (rank, merged); the lowest rank merges first."""


def merges_of(tokenizer: PreTrainedTokenizerFast) -> Merges:
    """The merges of a tokenizer's own BPE model; empty for a model of another kind."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = model["vocab"]
    return {
        (vocabulary[left], vocabulary[right]): (rank, vocabulary[left + right])
        for rank, (left, right) in enumerate(model.get("merges", ()))
    }


class ByteSegmenter:
    """Cuts byte strings into the tokens of one vocabulary, as its tokenizer would.

    Valid UTF-8 is encoded by the tokenizer itself, so that its pre-tokenizer has its say. Where that gives other bytes
    (a space put in front, a normaliser) and where the bytes are only a part of a character, the merges are applied to
    the bytes directly.
    """

    def __init__(self, view: ByteView, merges: Merges) -> None:
        self._view = view
        self._merges = merges
        self._merge_products = {merged for _, merged in merges.values()}
        self._ids = _ids_by_bytes(view)

    def lookup(self, data: bytes) -> int | None:
        """The token that spells exactly ``data``; of several, one that ordinary text is encoded with."""
        return self._ids.get(data)

    def segment(self, data: bytes) -> list[int] | None:
        """Tokens whose bytes concatenate to ``data``; None if the vocabulary lacks a byte of it."""
        for pieces in (self._encode(data), self._merge(data)):
            if pieces and b"".join(self._view.token_bytes(piece) or b"" for piece in pieces) == data:
                return pieces
        return None

    def _encode(self, data: bytes) -> list[int] | None:
        try:
            return self._view.encode(data.decode()).ids.tolist()
        except (UnicodeDecodeError, InexactEncoding, UnsupportedTokenizer):
            return None

    def _merge(self, data: bytes) -> list[int] | None:
        pieces = self._unmerged(data)
        while pieces is not None and len(pieces) > 1:
            pairs = enumerate(itertools.pairwise(pieces))
            candidates = [(self._merges[pair], position) for position, pair in pairs if pair in self._merges]
            if not candidates:
                break
            (_, merged), position = min(candidates)
            pieces[position : position + 2] = [merged]
        return pieces

    def _unmerged(self, data: bytes) -> list[int] | None:
        """The tokens that merging starts from: whole characters if the vocabulary has them as primitives, else bytes.

        SentencePiece merges characters, byte-level BPE merges bytes and makes its characters by merging.
        """
        pieces: list[int] = []
        for character in data.decode(errors="surrogateescape"):
            spelled = character.encode(errors="surrogateescape")
            whole = self._ids.get(spelled)
            if whole is not None and whole not in self._merge_products:
                pieces.append(whole)
                continue
            parts = [self._ids.get(spelled[i : i + 1]) for i in range(len(spelled))]
            if None in parts:
                return None
            pieces.extend(part for part in parts if part is not None)
        return pieces


def _ids_by_bytes(view: ByteView) -> dict[bytes, int]:
    """Bytes -> id. The model's own entries go before added tokens, those before byte-fallback ones, then low ids."""
    ids: dict[bytes, int] = {}
    for kind in (TokenKind.TEXT, TokenKind.ADDED, TokenKind.BYTE_FALLBACK):
        for token in np.flatnonzero(view.kinds == kind).tolist():
            ids.setdefault(view.token_bytes(token) or b"", token)
    return ids
