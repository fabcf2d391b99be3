"""How a tokenizer's own model cuts bytes into tokens, applied to bytes that need not be text.

``tokenizers`` takes text only, and puts a normaliser and a pre-tokenizer before the model. What is left here is the
model alone: the merges of BPE, the most probable pieces of Unigram, the longest match of the others.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from alignment.byte_view import ByteView
from alignment.token_index import TokenIndex
from alignment.token_table import TokenKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ByteModel = Callable[[bytes], list[int] | None]
"""Bytes -> ids of tokens; None where the model finds none."""

Merges = Mapping[tuple[int, int], tuple[int, int]]
"""Byte-pair merges as ids: (left, right) -> (rank, merged); the lowest rank merges first."""

_UNKNOWN_PENALTY = 10.0  # below the worst piece: what SentencePiece and `tokenizers` charge for an unknown character


def byte_model(tokenizer: PreTrainedTokenizerBase, view: ByteView) -> ByteModel:
    """The model of a tokenizer, on bytes; the longest match for a tokenizer that has no ``tokenizers`` backend."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if isinstance(backend, Tokenizer) else {"type": None}
    index = TokenIndex(view)
    if model["type"] == "BPE":
        return bpe_model(index, merges_of(model))
    if model["type"] == "Unigram":
        return unigram_model(index, [score for _, score in model["vocab"]])
    return longest_match_model(index)


def bpe_model(index: TokenIndex, merges: Merges) -> ByteModel:
    """Byte-pair encoding (Sennrich et al. 2016): merge the neighbours of lowest rank until none can be merged."""
    primitives = bpe_primitives(index, merges)

    def segment(data: bytes) -> list[int] | None:
        ids = primitives(data)
        while ids is not None and len(ids) > 1:
            pairs = enumerate(itertools.pairwise(ids))
            candidates = [(merges[pair], position) for position, pair in pairs if pair in merges]
            if not candidates:
                break
            (_, merged), position = min(candidates)
            ids[position : position + 2] = [merged]
        return ids

    return segment


def bpe_primitives(index: TokenIndex, merges: Merges) -> ByteModel:
    """What byte-pair encoding starts to merge from.

    That is whole characters where the vocabulary has them as primitives, as SentencePiece does, and bytes elsewhere, as
    byte-level BPE does, which makes its characters by merging.
    """
    products = {merged for _, merged in merges.values()}

    def split(data: bytes) -> list[int] | None:
        ids: list[int] = []
        for character in data.decode(errors="surrogateescape"):
            spelled = character.encode(errors="surrogateescape")
            whole = index.find(spelled)
            if whole is not None and whole not in products:
                ids.append(whole)
                continue
            parts = _single_bytes(index, spelled)
            if parts is None:
                return None
            ids.extend(parts)
        return ids

    return split


def unigram_model(index: TokenIndex, scores: list[float]) -> ByteModel:
    """The most probable pieces (Kudo 2018, Viterbi); of equally probable ones the longer last piece.

    A character that is no piece is spelled with byte-fallback tokens, at the price of an unknown character.

    Args:
        scores: log-probability of each id of the model's own vocabulary.
    """
    pieces = {
        index.view.token_bytes(token) or b"": (score, token)
        for token, score in reversed(list(enumerate(scores)))  # of several with the same bytes the lowest id stays
        if index.view.kinds[token] == TokenKind.TEXT
    }
    longest = max(map(len, pieces), default=0)
    unknown_score = min(scores, default=0.0) - _UNKNOWN_PENALTY

    def candidates(data: bytes, start: int, character_end: int) -> Iterator[tuple[int, float, list[int]]]:
        for end in range(start + 1, min(start + longest, len(data)) + 1):
            if (piece := pieces.get(data[start:end])) is not None:
                yield end, piece[0], [piece[1]]
        character = data[start:character_end]
        if character not in pieces and (parts := _single_bytes(index, character)) is not None:
            yield character_end, unknown_score, parts

    def segment(data: bytes) -> list[int] | None:
        best: dict[int, tuple[float, int, list[int]]] = {0: (0.0, 0, [])}
        start = 0
        for character in data.decode(errors="surrogateescape"):
            character_end = start + len(character.encode(errors="surrogateescape"))
            if start in best:
                for end, score, ids in candidates(data, start, character_end):
                    total = best[start][0] + score
                    if end not in best or total > best[end][0]:
                        best[end] = (total, start, ids)
            start = character_end
        return _path(best, len(data)) if len(data) in best else None

    return segment


def _path(best: Mapping[int, tuple[float, int, list[int]]], end: int) -> list[int]:
    """The ids on the best path to ``end``, which holds for each end the score, the start and the ids of a step."""
    steps: list[list[int]] = []
    while end:
        _, end, ids = best[end]
        steps.append(ids)
    return [token for ids in reversed(steps) for token in ids]


def longest_match_model(index: TokenIndex) -> ByteModel:
    """From the left, always the longest token that fits, which is how WordPiece cuts a word (Schuster 2012)."""
    longest = int(index.view.byte_lengths.max(initial=0))

    def segment(data: bytes) -> list[int] | None:
        ids: list[int] = []
        start = 0
        while start < len(data):
            ends = range(min(start + longest, len(data)), start, -1)
            found = ((token, end) for end in ends if (token := index.find(data[start:end])) is not None)
            token, start = next(found, (None, start))
            if token is None:
                return None
            ids.append(token)
        return ids

    return segment


def merges_of(model: Mapping[str, Any]) -> Merges:
    """The merges of a BPE model as ``tokenizer.json`` has it."""
    vocabulary = model["vocab"]
    prefix = model.get("continuing_subword_prefix") or ""
    return {
        (vocabulary[left], vocabulary[right]): (rank, vocabulary[left + right.removeprefix(prefix)])
        for rank, (left, right) in enumerate(model["merges"])
    }


def _single_bytes(index: TokenIndex, data: bytes) -> list[int] | None:
    """Each byte as a token of its own; None if the vocabulary lacks one."""
    ids = [index.find(data[position : position + 1]) for position in range(len(data))]
    return None if None in ids else [token for token in ids if token is not None]
