"""What of a tokenizer decides which of its token sequences are valid: its merges and pattern, or all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from alignment.byte_models import merges_of
from alignment.byte_view import ByteView
from alignment.covers_borders import Borders, reads_classes_only, signs_named
from alignment.covers_merges import MergePairs
from alignment.covers_validity import ByEncoding, ByMerges, EncodeSpelled, Validity
from alignment.token_table import TokenKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def spelled_encoder(view: ByteView) -> tuple[EncodeSpelled, Callable[[bytes], bytes]]:
    """An encoder of texts given as their tokens spell them, and what the tokenizer puts in front of a text.

    The second is a space or nothing; with some tokenizers it depends on whether the text begins with a space.
    """
    probes = view.encode_batch(["a", " a"], exact=False)
    invented = [len(probe.ids) and probe.byte_ends[-1] < view.byte_lengths[probe.ids].sum() for probe in probes]

    def put_in_front(text: bytes) -> bytes:
        return b" " if invented[text.startswith(b" ")] else b""

    def encode(texts: Sequence[str]) -> list[np.ndarray | None]:
        plain = [text[1:] if invented[0] and text.startswith(" ") else text for text in texts]
        if invented[0] and not invented[1]:
            # Two texts have these tokens, with a space and without: either will do.
            plain = [" " + text if text.startswith(" ") else text for text in plain]
        encodings = view.encode_batch(plain, exact=False)
        return [
            encoding.ids if encoding.exact and _length(text) == view.byte_lengths[encoding.ids].sum() else None
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    return encode, put_in_front


def _length(text: str) -> int:
    return len(text.encode())


def validity_of(tokenizer: PreTrainedTokenizerBase, view: ByteView, encode: EncodeSpelled) -> Validity:
    """What ``tokenizer``, of which ``view`` is the view, allows; by its merges where they decide."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return ByEncoding(view, encode, looks_ahead=True)
    pipeline = json.loads(backend.to_str())
    model, pre_tokenizer = pipeline["model"], pipeline["pre_tokenizer"]
    if _bytes_are_merged(pipeline) and reads_classes_only(pre_tokenizer):
        borders = _borders(backend, pre_tokenizer, view) if _cuts(pre_tokenizer) else None
        whole, composed = bool(model.get("ignore_merges")), pipeline["normalizer"] is not None
        return ByMerges(view, _pairs(pipeline, view), borders, whole=whole, composed=composed)
    return ByEncoding(view, encode, looks_ahead=pre_tokenizer is not None and model["type"] == "BPE")


def _bytes_are_merged(pipeline: Mapping[str, Any]) -> bool:
    """Whether byte-pair encoding starts from single bytes and sees the text as it is."""
    model = pipeline["model"]
    byte_level = '"ByteLevel"' in json.dumps(pipeline["pre_tokenizer"])
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    # Of texts that NFC leaves alone it is no part; others are not spelled by their tokens.
    unchanged = pipeline["normalizer"] in (None, {"type": "NFC"})
    return model["type"] == "BPE" and byte_level and unchanged and not affixes


def _cuts(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether a pre-tokenizer does more than map bytes to characters."""
    if pre_tokenizer is None:
        return False
    if pre_tokenizer["type"] == "Sequence":
        return any(map(_cuts, pre_tokenizer["pretokenizers"]))
    return pre_tokenizer["type"] != "ByteLevel" or pre_tokenizer["use_regex"]


def _borders(backend: Tokenizer, pre_tokenizer: Mapping[str, Any], view: ByteView) -> Borders:
    def cuts(text: str) -> set[int]:
        return {start for _, (start, _) in backend.pre_tokenizer.pre_tokenize_str(text)} - {0}

    token_bytes = [view.token_bytes(token) for token in range(view.vocab_size)]
    return Borders(cuts, token_bytes, literal=signs_named(pre_tokenizer))


def _pairs(pipeline: Mapping[str, Any], view: ByteView) -> MergePairs:
    """The neighbours that the merges allow, without pre-tokenizer and added tokens."""
    merging = {**pipeline, "added_tokens": [], "pre_tokenizer": None, "post_processor": None, "decoder": None}
    merging["model"] = {**pipeline["model"], "ignore_merges": False}
    tokenizer = Tokenizer.from_str(json.dumps(merging))
    entries = pipeline["model"]["vocab"]
    entry_of = {token: entry for entry, token in entries.items()}

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def ask(left: int, rights: np.ndarray) -> np.ndarray:
        pairs = [[left, right] for right in rights.tolist()]
        encoded = encode([entry_of[left] + entry_of[right] for _, right in pairs])
        return np.array([found == pair for found, pair in zip(encoded, pairs, strict=True)], dtype=bool)

    made = np.zeros(view.vocab_size, dtype=bool)
    for token, ids in zip(entries.values(), encode(list(entries)), strict=True):
        made[token] = ids == [token] and view.kinds[token] == TokenKind.TEXT
    return MergePairs(merges_of(pipeline["model"]), made, view.byte_lengths, ask)
