"""Any byte strings as the tokens of a tokenizer, also where the bytes are no valid UTF-8 and no text can be encoded."""

from __future__ import annotations

from collections.abc import Sequence

from alignment.byte_models import ByteModel, longest_match_model
from alignment.token_codecs import UnsupportedTokenizer
from alignment.token_index import TokenIndex


class ByteSegmenter:
    """Cuts byte strings into the tokens of one vocabulary, as its tokenizer would.

    Valid UTF-8 is encoded by the tokenizer itself, so that its pre-tokenizer has its say. Where that gives other bytes
    (a space put in front, a normaliser) and where the bytes are only a part of a character, the tokenizer's model is
    applied to the bytes directly. Only tokens that have a row are used.

    Args:
        model: the tokenizer's own model on bytes (``byte_model``); None for a plain list of tokens, which is cut into
            the longest ones that fit.
    """

    def __init__(self, index: TokenIndex, model: ByteModel | None = None) -> None:
        self._index = index
        self._model = model or longest_match_model(index)

    def segment(self, tokens: Sequence[bytes]) -> list[list[int]]:
        """For each byte string, tokens whose bytes concatenate to it; an empty list if there are none."""
        encoded = self._encode(tokens)
        return [self._segment(data, encoded.get(data)) for data in tokens]

    def _segment(self, data: bytes, encoded: list[int] | None) -> list[int]:
        if encoded and self._spells(encoded, data):
            return encoded
        ids = self._model(data)
        return ids if ids and self._spells(ids, data) else []

    def _spells(self, ids: list[int], data: bytes) -> bool:
        token_bytes = self._index.view.token_bytes
        return self._index.have_rows(ids) and b"".join(token_bytes(token) or b"" for token in ids) == data

    def _encode(self, tokens: Sequence[bytes]) -> dict[bytes, list[int]]:
        """What the tokenizer itself gives for those that are text, whether it spells them or not."""
        texts: dict[bytes, str] = {}
        for data in tokens:
            try:
                texts[data] = data.decode()
            except UnicodeDecodeError:
                continue
        try:
            encodings = self._index.view.encode_batch(list(texts.values()), exact=False)
        except UnsupportedTokenizer:  # built from token bytes alone
            return {}
        return {data: encoding.ids.tolist() for data, encoding in zip(texts, encodings, strict=True)}
