"""A tokenizer seen as bytes: every token is an exact byte string, every encoding a list of byte offsets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tokenizers import Tokenizer

from alignment import token_table
from alignment.token_codecs import UnsupportedTokenizer, components
from alignment.token_table import TokenKind, TokenTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DigitScheme = Literal["single", "up_to_3_left", "up_to_3_right", "free", "none"]

_BOUNDARY_BYTES = (b" ", b"\t", b"\n")
_SNIPPET_BYTES = 16
_DIGITS = "31415926535897932384626433832795028841971693993751058209749445923078164062862089986280"


class InexactEncoding(ValueError):
    """The tokens of a text do not spell the text's bytes, so offsets into it would be wrong.

    Attributes:
        offset: the first byte of the text that the tokens do not reproduce.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True)
class Encoding:
    """One tokenized text.

    Attributes:
        ids: int32 [T].
        byte_ends: int64 [T], the offset of each token's end in the text's UTF-8 bytes; never decreases.
        special: bool [T], tokens that stand for no byte of the text.
    """

    ids: np.ndarray
    byte_ends: np.ndarray
    special: np.ndarray


class ByteView:
    """The vocabulary of a tokenizer as byte strings, and its encodings with exact byte offsets.

    Attributes:
        name: what to call the tokenizer in messages.
        vocab_size: highest id + 1.
        kinds: uint8 [V], a ``TokenKind`` for each id.
        byte_lengths: int32 [V]; 0 for special tokens and missing ids.
        special_tokens: id -> string of every special token.
        prefix_ids: special ids that the tokenizer itself puts before a text, such as ``[<bos>]``.
        fingerprint: sha256 of everything that changes ids or bytes.
    """

    def __init__(
        self,
        table: TokenTable,
        *,
        name: str,
        fingerprint: str,
        tokenizer: Tokenizer | None = None,
        prefix_ids: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.vocab_size = len(table.token_bytes)
        self.kinds = table.kinds
        self.special_tokens = table.special_tokens
        self.prefix_ids = list(prefix_ids)
        self.fingerprint = fingerprint
        self._token_bytes = table.token_bytes
        self._text_bytes = [token or b"" for token in table.token_bytes]
        self.byte_lengths = np.array([len(token) for token in self._text_bytes], dtype=np.int32)
        self._tokenizer = tokenizer

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerFast | str | Path) -> ByteView:
        """The byte view of a Hugging Face tokenizer, given as an object, a directory or a hub id.

        The object is left as it is. A token is special if the tokenizer's ``added_tokens_decoder``, its
        ``all_special_ids`` or its backend says so; any other added token is literal text.

        Raises:
            UnsupportedTokenizer: the bytes of its tokens cannot be derived from its pipeline.
        """
        if isinstance(tokenizer, str | Path):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        name = str(tokenizer.name_or_path or type(tokenizer).__name__)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UnsupportedTokenizer(
                f"tokenizer {name!r}: {type(tokenizer).__name__} has no `tokenizers` backend. "
                "Convert it to a fast tokenizer (a directory with a tokenizer.json) first."
            )
        pipeline = json.loads(backend.to_str())
        special_ids = token_table.find_special_ids(tokenizer, pipeline)
        prefix_ids = token_table.find_prefix_ids(tokenizer, name)
        return cls(
            token_table.read_table(pipeline, special_ids, name),
            name=name,
            fingerprint=token_table.fingerprint(pipeline, special_ids, prefix_ids),
            tokenizer=token_table.text_only_tokenizer(pipeline, special_ids),
            prefix_ids=prefix_ids,
        )

    @classmethod
    def from_token_bytes(cls, token_bytes: Sequence[bytes | None]) -> ByteView:
        """A vocabulary without a tokenizer, which cannot encode. None stands for a special token."""
        listing = json.dumps([None if token is None else token.hex() for token in token_bytes])
        fingerprint = hashlib.sha256(listing.encode()).hexdigest()
        return cls(token_table.toy_table(token_bytes), name="token bytes", fingerprint=fingerprint)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._tokenizer is not None:
            self._tokenizer.encode_special_tokens = True  # `tokenizers` does not pickle this switch

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of a token; None for a special token and for an id that the tokenizer does not have.

        Raises:
            IndexError: the id is not in [0, vocab_size).
        """
        if not 0 <= token_id < self.vocab_size:
            raise IndexError(f"token id {token_id} is outside [0, {self.vocab_size}) of tokenizer {self.name!r}")
        return self._token_bytes[token_id]

    @property
    def missing_ids(self) -> np.ndarray:
        """int64: the ids below ``vocab_size`` that the tokenizer does not have."""
        return np.flatnonzero(self.kinds == TokenKind.MISSING)

    def boundary_mask(self) -> np.ndarray:
        """bool [V]: special tokens, and tokens whose first byte is a space, a tab or a newline (alm.md §1.6)."""
        starts = [token.startswith(_BOUNDARY_BYTES) for token in self._text_bytes]
        return np.array(starts, dtype=bool) | (self.kinds == TokenKind.SPECIAL)

    def encode(self, text: str) -> Encoding:
        """Tokenize a text, all of which is text, and locate every token in its UTF-8 bytes.

        No special token is added, and the string of a special token inside the text is tokenized like any
        other text. A space that the tokenizer puts before the text is no byte of it: the first token then ends
        one byte earlier than its length says.

        Raises:
            InexactEncoding: the tokens do not spell the text, as when a normaliser rewrote it.
        """
        return self._locate(text, self._backend().encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """``encode`` for many texts at once, in parallel.

        Raises:
            InexactEncoding: the tokens of a text do not spell it; reports the first such text.
        """
        encodings = self._backend().encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._locate(text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True)]

    @cached_property
    def digit_scheme(self) -> DigitScheme:
        """How numbers are cut, found by encoding some (embedding_init.md §0.4).

        ``single``: at every digit. ``up_to_3_left`` and ``up_to_3_right``: into threes counted from that end.
        ``free``: as the merges have it. ``none``: the tokenizer cannot encode digits exactly.
        """
        if self._tokenizer is None:
            return "none"
        probes = [digits for length in range(2, 11) for digits in _digit_strings(length)]
        try:
            encodings = self.encode_batch(probes)
        except InexactEncoding:
            return "none"
        cuts = [set(encoding.byte_ends.tolist()) for encoding in encodings]
        lengths = [len(digits) for digits in probes]
        forced_cuts: dict[DigitScheme, list[Iterable[int]]] = {
            "single": [range(1, length) for length in lengths],
            "up_to_3_left": [range(3, length, 3) for length in lengths],
            "up_to_3_right": [range(length - 3, 0, -3) for length in lengths],
        }
        for scheme, forced in forced_cuts.items():
            if all(found.issuperset(required) for found, required in zip(cuts, forced, strict=True)):
                return scheme
        return "free"

    def _backend(self) -> Tokenizer:
        if self._tokenizer is None:
            raise UnsupportedTokenizer(f"{self.name!r} was built from token bytes alone and cannot encode text")
        return self._tokenizer

    def _locate(self, text: str, token_ids: list[int]) -> Encoding:
        expected = text.encode()
        spelled = b"".join([self._text_bytes[token_id] for token_id in token_ids])
        invented_bytes = 0
        if spelled != expected:
            if spelled != b" " + expected:
                raise self._inexact(expected, spelled, token_ids)
            invented_bytes = 1
        ids = np.array(token_ids, dtype=np.int32)
        byte_ends = np.cumsum(self.byte_lengths[ids], dtype=np.int64) - invented_bytes
        return Encoding(ids, byte_ends, self.kinds[ids] == TokenKind.SPECIAL)

    def _inexact(self, expected: bytes, spelled: bytes, token_ids: list[int]) -> InexactEncoding:
        shorter = min(len(expected), len(spelled))
        differs = np.frombuffer(expected[:shorter], np.uint8) != np.frombuffer(spelled[:shorter], np.uint8)
        offset = int(np.argmax(differs)) if differs.any() else shorter
        special = sorted({self.special_tokens[token] for token in token_ids if token in self.special_tokens})
        cause = (
            f"it gave the special tokens {special} for ordinary text"
            if special
            else f"its normalizers {self._normalizers} or its pre-tokenizer rewrote the text"
        )
        message = (
            f"tokenizer {self.name!r} does not reproduce the text from byte {offset} of {len(expected)} on: "
            f"the text has {expected[offset : offset + _SNIPPET_BYTES]!r}, the tokens spell "
            f"{spelled[offset : offset + _SNIPPET_BYTES]!r}; {cause}. "
            "Normalise the text in the same way beforehand, or leave it out."
        )
        return InexactEncoding(message, offset)

    @cached_property
    def _normalizers(self) -> list[str]:
        return [part["type"] for part in components(json.loads(self._backend().to_str()), "normalizer")]


def _digit_strings(length: int) -> list[str]:
    """Digit strings of one length: irregular ones, and the round and repeated ones that free merges join."""
    irregular = [_DIGITS[start : start + length] for start in range(0, len(_DIGITS) - length, 3)]
    return ["1" + "0" * (length - 1), "0" * length, "9" * length, *irregular]
