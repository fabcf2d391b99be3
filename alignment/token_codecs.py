"""How the text of a vocabulary entry stands for bytes: one small codec for each family of decoders.

A codec is chosen from the tokenizer's own pipeline (the content of its ``tokenizer.json``), never from a
model's name. A new family is a new codec and one more case in ``codec_for``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

_CHILDREN = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
_BYTE_LEVEL_DECODERS = {"ByteLevel", "Fuse"}
_SENTENCEPIECE_DECODERS = {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class UnsupportedTokenizer(ValueError):
    """The tokenizer is of a kind whose tokens cannot be turned into exact bytes."""


class TokenCodec(Protocol):
    """Turns the text of one vocabulary entry into the bytes it stands for."""

    def to_bytes(self, token: str) -> bytes:
        """The exact bytes of a vocabulary entry."""
        ...

    def is_byte_fallback(self, token: str) -> bool:
        """Whether the entry is a single byte that is used only where no other entry fits."""
        ...


def byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet, character -> byte: one printable character for each byte.

    Bytes 33-126, 161-172 and 174-255 are the character of the same code point; the 68 others are U+0100 to
    U+0143, in increasing order (embedding_init.md §0.1, rule 3).
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


_ALPHABET = byte_alphabet()


@dataclass(frozen=True)
class ByteLevelCodec:
    """Byte-level BPE: each character of an entry is one byte."""

    def to_bytes(self, token: str) -> bytes:
        """Undo the alphabet. Like the library's decoder, take an entry with a foreign character literally."""
        try:
            return bytes([_ALPHABET[character] for character in token])
        except KeyError:
            return token.encode()

    def is_byte_fallback(self, token: str) -> bool:
        """Never: every byte is an ordinary entry."""
        return False


@dataclass(frozen=True)
class SentencePieceCodec:
    """SentencePiece with byte fallback: ``<0xNN>`` is a byte, other pieces are text with replaced spaces.

    Attributes:
        replacements: (pattern, content) pairs that the decoder applies in turn, such as ``("▁", " ")``.
    """

    replacements: tuple[tuple[str, str], ...]

    def to_bytes(self, token: str) -> bytes:
        """The byte of a fallback piece, or the UTF-8 bytes of the piece with its spaces restored."""
        if match := _BYTE_FALLBACK.fullmatch(token):
            return bytes([int(match[1], 16)])
        for pattern, content in self.replacements:
            token = token.replace(pattern, content)
        return token.encode()

    def is_byte_fallback(self, token: str) -> bool:
        """Whether the piece is written ``<0xNN>``."""
        return _BYTE_FALLBACK.fullmatch(token) is not None


def components(pipeline: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    """The components of one section of a ``tokenizer.json``, in order, with nested sequences flattened."""

    def flatten(component: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
        if component is None:
            return []
        if component["type"] != "Sequence":
            return [component]
        return [leaf for child in component[_CHILDREN[section]] for leaf in flatten(child)]

    return flatten(pipeline[section])


def codec_for(pipeline: Mapping[str, Any], name: str) -> TokenCodec:
    """The codec of a parsed ``tokenizer.json``.

    Raises:
        UnsupportedTokenizer: no codec fits; says what was found in the pipeline of the tokenizer ``name``.
    """
    model = pipeline["model"]
    decoders = components(pipeline, "decoder")
    decoder_types = {component["type"] for component in decoders}
    pre_tokenizer_types = {component["type"] for component in components(pipeline, "pre_tokenizer")}
    affixes = [model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")]

    if model["type"] == "BPE" and not any(affixes):
        if "ByteLevel" in decoder_types | pre_tokenizer_types and decoder_types <= _BYTE_LEVEL_DECODERS:
            return ByteLevelCodec()
        replacements = _replacements(decoders)
        if model["byte_fallback"] and "ByteFallback" in decoder_types <= _SENTENCEPIECE_DECODERS and replacements:
            return SentencePieceCodec(replacements)

    raise UnsupportedTokenizer(
        f"tokenizer {name!r}: cannot derive the bytes of its tokens from model {model['type']} "
        f"(byte fallback {model.get('byte_fallback', False)}, subword prefix and suffix {affixes}), "
        f"pre-tokenizers {sorted(pre_tokenizer_types)} and decoders {sorted(decoder_types)}. "
        "Supported are byte-level BPE (ByteLevel) and SentencePiece BPE with byte fallback "
        "(ByteFallback with Metaspace or Replace): use a tokenizer of one of these kinds."
    )


def _replacements(decoders: list[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """The literal replacements of the decoders, in order; none at all if one is a regular expression."""
    pairs = []
    for decoder in decoders:
        if decoder["type"] == "Metaspace":
            pairs.append((decoder["replacement"], " "))
        elif decoder["type"] == "Replace":
            if "String" not in decoder["pattern"]:
                return ()
            pairs.append((decoder["pattern"]["String"], decoder["content"]))
    return tuple(pairs)
