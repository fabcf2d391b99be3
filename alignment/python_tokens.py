"""The bytes of the tokens of a tokenizer that runs in Python, found by tokenizing some texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from alignment.token_codecs import TokenCodec, UnsupportedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizer

ToBytes = Callable[[str], bytes | None]
"""The bytes of a vocabulary entry; None for one that no text can have."""

ORDINARY_PROBES = ("The quick brown fox", "jumps over 13 lazy dogs.")
"""Texts that every supported tokenizer spells."""

PROBES = (
    *ORDINARY_PROBES,
    "".join(map(chr, range(32, 127))),
    "  two  spaces, \ttab\r\n\n and new lines \n",
    "".join(map(chr, range(32))) + "\x7f",
    "Ein Häuschen, naïve façade, İstanbul",
    "e\u0301 n\u0303 ﬁ ① Å",
    "Москва, עברית, العربية, हिन्दी, ไทย",
    "東京タワー 한국어 你好，世界！",
    "👩‍👩‍👧 🙂 \U0001d518 \U0010fffd",
    "▁ \u00a0 \u3000 \u200b \ufeff \ue000 \ufffd",
)
"""Texts of many scripts, with white space and control characters of all kinds."""


def rule_of(tokenizer: PreTrainedTokenizer, tokenize: Callable[[str], Sequence[str]], name: str) -> ToBytes:
    """How the tokenizer's entries stand for bytes.

    A SentencePiece processor says so itself; elsewhere it is the rule under which the tokens spell the most probes.

    Args:
        tokenize: the tokens of a text as vocabulary entries.

    Raises:
        UnsupportedTokenizer: under no rule do its tokens spell even the ordinary probes.
    """
    if hasattr(tokenizer, "sp_model"):
        return TokenCodec(byte_fallback=True, space_marks=("▁",)).to_bytes
    rules: list[ToBytes] = [_latin_byte, _literal, TokenCodec(byte_level=True).to_bytes]
    rules.append(TokenCodec(space_marks=("▁",)).to_bytes)
    tokens = {probe: tokenize(probe) for probe in PROBES}

    def spelled(rule: ToBytes) -> set[str]:
        return {probe for probe in PROBES if spells(probe, [rule(token) or b"" for token in tokens[probe]])}

    best = max(rules, key=lambda rule: len(spelled(rule)))
    if not spelled(best).issuperset(ORDINARY_PROBES):
        probe = ORDINARY_PROBES[0]
        raise UnsupportedTokenizer(
            f"tokenizer {name!r}: {type(tokenizer).__name__} has no `tokenizers` backend, and its tokens do not tell "
            f"their bytes: {probe!r} becomes {list(tokens[probe])[:8]}. Supported without such a backend are tokens "
            "that are bytes, characters, byte-level (GPT-2's alphabet) or SentencePiece pieces. Convert the tokenizer "
            "to a fast one (a directory with a tokenizer.json)."
        )
    return best


def spells(text: str, token_bytes: Sequence[bytes]) -> bool:
    """Whether tokens spell a text, or the text with a space in front."""
    spelled = b"".join(token_bytes)
    return spelled in (text.encode(), b" " + text.encode())


def _latin_byte(token: str) -> bytes:
    """A character below U+0100 is the byte of that number."""
    return bytes([ord(token)]) if len(token) == 1 and ord(token) < 256 else token.encode(errors="replace")


def _literal(token: str) -> bytes | None:
    """A token is its own text; a lone surrogate is none."""
    try:
        return token.encode()
    except UnicodeEncodeError:
        return None
