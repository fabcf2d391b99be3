"""A tokenizer seen as bytes: every token is a byte string, every encoding a list of byte offsets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignment import digits, token_table
from alignment.backends import Backend, Tokenized
from alignment.byte_pool import BytePool
from alignment.digits import DigitScheme
from alignment.encoding import Encoding
from alignment.offsets import common_prefix, locate, spans_around_difference
from alignment.token_codecs import UnsupportedTokenizer
from alignment.token_table import TokenKind
from alignment.tokenizer_facts import TokenizerFacts, facts_of, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ByteView", "DigitScheme", "Encoding", "InexactEncoding"]

_BOUNDARY_BYTES = (b" ", b"\t", b"\n")
_BLOCK_TEXTS = 128  # what `tokenizers` keeps of each text is many times its size
_SNIPPET_BYTES = 16
_SPACE = 0x20


class InexactEncoding(ValueError):
    """The tokens of a text do not spell the text's bytes.

    Attributes:
        offset: the first byte of the text that the tokens do not reproduce.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class ByteView:
    """The vocabulary of a tokenizer as byte strings, and its encodings with byte offsets into the original text.

    Attributes:
        name: what to call the tokenizer in messages.
        vocab_size: highest id + 1.
        kinds: uint8 [V], a ``TokenKind`` for each id.
        affixes: uint8 [V], a ``TokenAffix`` for each id: whether its spelling ties it to a place in a word.
        byte_lengths: int32 [V]; 0 for special tokens and missing ids.
        special_tokens: id -> string of every special token.
        prefix_ids: special ids that the tokenizer itself puts before a text, such as ``[<bos>]``.
        inexact_reasons: why not every text is spelled exactly by its tokens, one sentence each; empty if every one is.
        fingerprint: sha256 of everything that changes ids or bytes.
    """

    def __init__(self, facts: TokenizerFacts, *, name: str) -> None:
        table = facts.table
        self.name = name
        self.vocab_size = len(table.token_bytes)
        self.kinds = table.kinds
        self.affixes = table.affixes
        self.special_tokens = table.special_tokens
        self.prefix_ids = list(facts.prefix_ids)
        self.inexact_reasons = facts.inexact_reasons
        self.fingerprint = facts.fingerprint
        self._facts = facts
        self._text = BytePool([token or b"" for token in table.token_bytes])
        self.byte_lengths = self._text.lengths

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase | str | Path, *, trust_remote_code: bool = False
    ) -> ByteView:
        """The byte view of a Hugging Face tokenizer, given as an object, a directory or a hub id.

        The object is left as it is. A token is special if the tokenizer's ``added_tokens_decoder``, its
        ``all_special_ids`` or its backend says so, or if it is what the model gives for unknown characters; any other
        added token is literal text.

        Args:
            trust_remote_code: run Python code that comes with a tokenizer given by its place.

        Raises:
            UnsupportedTokenizer: the bytes of its tokens cannot be derived, or it needs code that is not trusted.
        """
        if isinstance(tokenizer, str | Path):
            tokenizer = load_tokenizer(tokenizer, trust_remote_code=trust_remote_code)
        name = str(tokenizer.name_or_path or type(tokenizer).__name__)
        return cls(facts_of(tokenizer, name), name=name)

    @classmethod
    def from_token_bytes(cls, token_bytes: Sequence[bytes | None]) -> ByteView:
        """A vocabulary without a tokenizer, which cannot encode. None stands for a special token."""
        listing = json.dumps([None if token is None else token.hex() for token in token_bytes])
        fingerprint = hashlib.sha256(listing.encode()).hexdigest()
        facts = TokenizerFacts(token_table.toy_table(token_bytes), backend=None, fingerprint=fingerprint)
        return cls(facts, name="token bytes")

    @property
    def exact(self) -> bool:
        """Whether every text is spelled exactly by its tokens, but for a space that they may put in front of it."""
        return not self.inexact_reasons

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of a token; None for a special token and for an id that the tokenizer does not have.

        Raises:
            IndexError: the id is not in [0, vocab_size).
        """
        if not 0 <= token_id < self.vocab_size:
            raise IndexError(f"token id {token_id} is outside [0, {self.vocab_size}) of tokenizer {self.name!r}")
        return self._facts.table.token_bytes[token_id]

    @property
    def missing_ids(self) -> np.ndarray:
        """int64: the ids below ``vocab_size`` that the tokenizer does not have."""
        return np.flatnonzero(self.kinds == TokenKind.MISSING)

    def boundary_mask(self) -> np.ndarray:
        """bool [V]: special tokens, and tokens whose first byte is a space, a tab or a newline (alm.md §1.6)."""
        starts = [token is not None and token.startswith(_BOUNDARY_BYTES) for token in self._facts.table.token_bytes]
        return np.array(starts, dtype=bool) | (self.kinds == TokenKind.SPECIAL)

    def encode(self, text: str, *, exact: bool = True) -> Encoding:
        """Tokenize a text, all of which is text, and locate every token in its UTF-8 bytes.

        No special token is added, and the string of a special token inside the text is tokenized like any
        other text. A space that the tokenizer puts before the text is no byte of it: the first token then ends
        one byte earlier than its length says.

        Args:
            exact: raise an error if the tokens do not spell the text; otherwise mark those that do not.

        Raises:
            InexactEncoding: the tokens do not spell the text, as when a normaliser rewrote it (only if ``exact``); or
                the text has lone surrogates and thus no bytes.
        """
        return self.encode_batch([text], exact=exact)[0]

    def encode_batch(self, texts: Sequence[str], *, exact: bool = True) -> list[Encoding]:
        """``encode`` for many texts at once, in parallel.

        Raises:
            InexactEncoding: as for ``encode``; reports the first such text.
        """
        return [
            encoding
            for start in range(0, len(texts), _BLOCK_TEXTS)
            for encoding in self._encode_block(texts[start : start + _BLOCK_TEXTS], exact)
        ]

    def encode_rendered(self, text: str) -> Encoding:
        """Tokenize a rendered chat template as the model sees it: the string of a special token is that token.

        Nothing is added. Unlike in ``encode``, special tokens span the bytes of their own strings, with the white
        space that they swallow. Where the tokens do not spell the text they are marked.

        Raises:
            InexactEncoding: the text has lone surrogates and thus no bytes.
        """
        data = self._utf8(text)
        (tokenized,) = self._backend().tokenize([text], rendered=True)
        ids = tokenized.ids
        encoding = self._spelled(data, ids, self._markup) or self._located(text, tokenized, self._markup)
        special = self._stands_for_markup(encoding, data.tobytes())
        return Encoding(
            ids,
            encoding.byte_ends,
            special,
            boundary=encoding.boundary | special,
            verbatim=encoding.verbatim | special,
            text_bytes=len(data),
        )

    def words(self, text: str, *, rendered: bool = False) -> np.ndarray | None:
        """int64 [T]: the word of each token of a text, within which alone its model merges; special tokens are words.

        Args:
            rendered: the text is read as by ``encode_rendered``.

        Returns:
            None where the tokenizer does not tell.
        """
        (tokenized,) = self._backend().tokenize([text], rendered=rendered)
        return tokenized.words()

    @cached_property
    def digit_scheme(self) -> DigitScheme:
        """How numbers are cut, found by encoding some (embedding_init.md §0.4).

        ``single``: at every digit. ``up_to_3_left`` and ``up_to_3_right``: into threes counted from that end.
        ``free``: as the merges have it. ``none``: the tokenizer cannot encode digits exactly.
        """
        if self._facts.backend is None:
            return "none"
        numbers = digits.probes()
        try:
            encodings = self.encode_batch(numbers)
        except InexactEncoding:
            return "none"
        return digits.scheme_of(numbers, [encoding.byte_ends for encoding in encodings])

    def _backend(self) -> Backend:
        if self._facts.backend is None:
            raise UnsupportedTokenizer(f"{self.name!r} was built from token bytes alone and cannot encode text")
        return self._facts.backend

    def _encode_block(self, texts: Sequence[str], exact: bool) -> list[Encoding]:
        documents = [self._utf8(text) for text in texts]
        encodings = []
        for text, data, tokenized in zip(texts, documents, self._backend().tokenize(texts), strict=True):
            encoding = self._spelled(data, tokenized.ids, self._text) or self._located(text, tokenized, self._text)
            if exact and not encoding.exact:
                raise self._inexact(data, encoding)
            encodings.append(encoding)
        return encodings

    @cached_property
    def _markup(self) -> BytePool:
        """The bytes of all tokens where special ones are spelled by their strings."""
        token_bytes = [token or b"" for token in self._facts.table.token_bytes]
        for index, string in self.special_tokens.items():
            token_bytes[index] = string.encode()
        return BytePool(token_bytes)

    def _utf8(self, text: str) -> np.ndarray:
        try:
            return np.frombuffer(text.encode(), np.uint8)
        except UnicodeEncodeError as error:
            raise InexactEncoding(
                f"tokenizer {self.name!r} cannot encode the text: character {error.start} is the lone surrogate "
                f"U+{ord(text[error.start]):04X}, which has no UTF-8 bytes. Repair or leave out the text.",
                len(text[: error.start].encode()),
            ) from None

    def _spelled(self, data: np.ndarray, ids: np.ndarray, pool: BytePool) -> Encoding | None:
        """The encoding of tokens that spell the text or the text with a space in front; None if they do not."""
        byte_ends = np.cumsum(pool.lengths[ids], dtype=np.int64)
        invented_bytes = (int(byte_ends[-1]) if byte_ends.size else 0) - len(data)
        if invented_bytes not in (0, 1):
            return None
        spelled = pool.spell(ids)
        if (invented_bytes and spelled[0] != _SPACE) or not np.array_equal(spelled[invented_bytes:], data):
            return None
        everywhere = np.ones(len(ids), dtype=bool)
        special = self.kinds[ids] == TokenKind.SPECIAL
        return Encoding(ids, byte_ends - invented_bytes, special, everywhere, everywhere, len(data))

    def _located(self, text: str, tokenized: Tokenized, pool: BytePool) -> Encoding:
        """The encoding of tokens that do not spell the text, from the characters they were made from."""
        ids = tokenized.ids
        lengths, spelled = pool.lengths[ids], pool.spell(ids)
        spans = tokenized.spans() or spans_around_difference(text, spelled, lengths, self._facts.space_rule)
        place = locate(text, spans, spelled, lengths, self._facts.space_rule)
        no_bytes = np.diff(place.byte_ends, prepend=0) == 0
        special = (self.kinds[ids] == TokenKind.SPECIAL) & no_bytes & place.boundary
        return Encoding(ids, place.byte_ends, special, place.boundary, place.verbatim, len(text.encode()))

    def _stands_for_markup(self, encoding: Encoding, data: bytes) -> np.ndarray:
        """bool [T]: special tokens located at their own string, with white space around it where they swallow that.

        Others are no markup: ``<unk>`` where it stands for an unknown text, and tokens whose place is not known.
        """
        special = self.kinds[encoding.ids] == TokenKind.SPECIAL
        edges = np.append(0, encoding.byte_ends)
        for token in np.flatnonzero(special & ~encoding.verbatim).tolist():
            span = data[edges[token] : edges[token + 1]].decode(errors="replace")
            special[token] = span.strip() == self.special_tokens[int(encoding.ids[token])].strip()
        return special

    def _inexact(self, data: np.ndarray, encoding: Encoding) -> InexactEncoding:
        ids = encoding.ids
        first = len(ids) if encoding.verbatim.all() else int(np.argmin(encoding.verbatim))
        start = int(encoding.byte_ends[first - 1]) if first else 0
        tokens = self._text.spell(ids[first:])
        same = common_prefix(data[start:], tokens)
        offset = start + same
        special = sorted({self.special_tokens[token] for token in ids.tolist() if token in self.special_tokens})
        causes = [f"it gave the special tokens {special} for ordinary text"] if special else []
        causes += self.inexact_reasons or (["its pipeline rewrote the text"] if not special else [])
        message = (
            f"tokenizer {self.name!r} does not reproduce the text from byte {offset} of {len(data)} on: "
            f"the text has {data[offset : offset + _SNIPPET_BYTES].tobytes()!r}, the tokens spell "
            f"{tokens[same : same + _SNIPPET_BYTES].tobytes()!r} (possible causes: {'; '.join(causes)}). "
            "Normalise the text in the same way beforehand, or leave it out."
        )
        return InexactEncoding(message, offset)
