"""How the text of a vocabulary entry stands for bytes, read from the side of the pipeline that encodes.

A tokenizer turns text into entries by its normalizers, its pre-tokenizers and its model; the codec undoes the steps
that only respell (byte alphabets, space marks, subword affixes). It is chosen from the tokenizer's own pipeline (the
content of its ``tokenizer.json``), never from a model's name. Steps that lose something (case, Unicode forms) cannot
be undone; whoever encodes a text compares the bytes and finds out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from tokenizers import Tokenizer

_CHILDREN = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class UnsupportedTokenizer(ValueError):
    """The tokenizer is of a kind whose tokens cannot be turned into bytes."""


class TokenAffix(IntFlag):
    """What the spelling of an entry says of its place in a word, beyond its bytes."""

    NONE = 0
    CONTINUES = 1  # written with WordPiece's `##` or the like: never the first token of a word
    ENDS = 2  # written with `</w>` or the like: the last token of a word


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
class TokenCodec:
    """Turns the text of one vocabulary entry into the bytes it stands for.

    Attributes:
        byte_level: each character of an entry is one byte, in GPT-2's alphabet.
        byte_fallback: an entry ``<0xNN>`` is a byte.
        space_marks: strings that stand for a space, such as ``▁``.
        continuation: what an entry begins with if it continues a word, such as ``##``.
        word_end: what an entry ends with if it ends a word, such as ``</w>``.
        opens_words: entries that do not begin with ``continuation`` begin a word, and the space before it is theirs.
        standalone: first characters of entries that are words of their own with or without a space before them
            (punctuation, Chinese characters): there the space is not theirs.
    """

    byte_level: bool = False
    byte_fallback: bool = False
    space_marks: tuple[str, ...] = ()
    continuation: str = ""
    word_end: str = ""
    opens_words: bool = False
    standalone: frozenset[str] = frozenset()

    def to_bytes(self, token: str) -> bytes:
        """The bytes of a vocabulary entry. A byte-level entry with a foreign character is taken literally."""
        if self.byte_fallback and (match := _BYTE_FALLBACK.fullmatch(token)):
            return bytes([int(match[1], 16)])
        continues = bool(self.continuation) and token.startswith(self.continuation)
        token = token.removesuffix(self.word_end)
        token = token.removeprefix(self.continuation)
        opens_word = self.opens_words and not continues and token[:1] not in self.standalone
        for mark in self.space_marks:
            token = token.replace(mark, " ")
        return b" " * opens_word + (self._alphabet_bytes(token) if self.byte_level else token.encode())

    def affixes(self, token: str) -> TokenAffix:
        """The marks of a place in a word that the entry is written with."""
        continues = bool(self.continuation) and token.startswith(self.continuation)
        ends = bool(self.word_end) and token.endswith(self.word_end)
        return (TokenAffix.CONTINUES if continues else TokenAffix.NONE) | (TokenAffix.ENDS if ends else TokenAffix.NONE)

    def is_byte_fallback(self, token: str) -> bool:
        """Whether the entry is a single byte that is used only where no other entry fits."""
        return self.byte_fallback and _BYTE_FALLBACK.fullmatch(token) is not None

    def _alphabet_bytes(self, token: str) -> bytes:
        try:
            return bytes([_ALPHABET[character] for character in token])
        except KeyError:
            return token.encode()


def components(pipeline: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    """The components of one section of a ``tokenizer.json``, in order, with nested sequences flattened."""

    def flatten(component: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
        if component is None:
            return []
        if component["type"] != "Sequence":
            return [component]
        return [leaf for child in component[_CHILDREN[section]] for leaf in flatten(child)]

    return flatten(pipeline[section])


def vocabulary(pipeline: Mapping[str, Any]) -> dict[str, int]:
    """Entry -> id of the pipeline's model, without the added tokens."""
    entries = pipeline["model"]["vocab"]
    if isinstance(entries, list):  # Unigram: (entry, score) pairs in the order of their ids
        return {entry: index for index, (entry, _) in enumerate(entries)}
    return entries


def codec_for(pipeline: Mapping[str, Any], tokenizer: Tokenizer) -> TokenCodec:
    """The codec of a tokenizer, given as a parsed ``tokenizer.json`` and as an object that runs it."""
    model = pipeline["model"]
    encoding_steps = [*components(pipeline, "normalizer"), *components(pipeline, "pre_tokenizer")]
    continuation = model.get("continuing_subword_prefix") or ""
    opens_words = drops_spaces(tokenizer) and (bool(continuation) or model["type"] == "WordLevel")
    return TokenCodec(
        byte_level=any(step["type"] == "ByteLevel" for step in encoding_steps),
        byte_fallback=bool(model.get("byte_fallback")),
        space_marks=tuple(dict.fromkeys(filter(None, map(_space_mark, encoding_steps)))),
        continuation=continuation,
        word_end=model.get("end_of_word_suffix") or "",
        opens_words=opens_words,
        standalone=_standalone(tokenizer, vocabulary(pipeline)) if opens_words else frozenset(),
    )


def invents_space(pipeline: Mapping[str, Any], codec: TokenCodec) -> bool:
    """Whether the tokens of a text can begin with a space that the text does not have."""
    prefixes = [
        step
        for step in [*components(pipeline, "normalizer"), *components(pipeline, "pre_tokenizer")]
        if (step["type"] == "Prepend" and step["prepend"] in {" ", *codec.space_marks})
        or (step["type"] == "Metaspace" and step["prepend_scheme"] != "never")
        or (step["type"] == "ByteLevel" and step.get("add_prefix_space"))
    ]
    return codec.opens_words or bool(prefixes)


def drops_spaces(tokenizer: Tokenizer) -> bool:
    """Whether the pre-tokenizer splits words at a space that then belongs to neither."""
    return "".join(_words(tokenizer, "a b")) == "ab"


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    if tokenizer.pre_tokenizer is None:
        return [normalized]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]


def _standalone(tokenizer: Tokenizer, entries: Iterable[str]) -> frozenset[str]:
    """The first characters of entries that are cut off from a letter before them."""
    characters = {entry[0] for entry in entries if entry}
    return frozenset(character for character in characters if _words(tokenizer, "a" + character)[:1] == ["a"])


def _space_mark(step: Mapping[str, Any]) -> str | None:
    if step["type"] == "Metaspace":
        return step["replacement"]
    if step["type"] == "Replace" and step["pattern"] in ({"String": " "}, {"Regex": " "}):
        return step["content"] if step["content"] != " " else None
    return None
