"""What a new tokenizer does to the text it was made for, beside the one that it was made from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from alignment.byte_view import ByteView
from alignment.token_table import TokenKind

SCHEMA_VERSION = 1
_TOP_TOKENS = 20
_TEXTS_AT_ONCE = 256


def describe(base: ByteView, made: ByteView, texts: Iterable[str]) -> dict[str, Any]:
    """Compare two tokenizers on text.

    Returns:
        A JSON object:

        * ``schema_version``: raised when a key changes its meaning.
        * ``base``, ``made``: of each tokenizer its ``size`` (highest id + 1), ``tokens`` (ids that exist), ``special``
          tokens, ``digit_scheme``, ``exact``, ``inexact_reasons``, ``fingerprint``, and the ``tokens_of_text`` and
          ``bytes_per_token`` of the texts.
        * ``text_bytes``: UTF-8 bytes of the texts.
        * ``new_tokens``: how many tokens spell something that no token of the base spells: ``count``; how many of them
          occur in the texts: ``used``; the most frequent ones with their frequencies: ``top``.
        * ``base_tokens_kept``: share of the base's tokens whose spelling is still a token.
    """
    frequencies = np.zeros(made.vocab_size, dtype=np.int64)
    text_bytes = base_tokens = 0
    texts = iter(texts)
    while block := list(itertools.islice(texts, _TEXTS_AT_ONCE)):
        text_bytes += sum(len(text.encode()) for text in block)
        base_tokens += sum(len(encoding.ids) for encoding in base.encode_batch(block, exact=False))
        for encoding in made.encode_batch(block, exact=made.exact):
            frequencies += np.bincount(encoding.ids, minlength=made.vocab_size)
    base_spellings, made_spellings = _spellings(base), _spellings(made)
    known = set(base_spellings.values())
    new = [token for token, spelling in made_spellings.items() if spelling not in known]
    # A stable sort: of equally frequent tokens the one with the lower id comes first.
    top = sorted(new, key=lambda token: -frequencies[token])[:_TOP_TOKENS]
    return {
        "schema_version": SCHEMA_VERSION,
        "base": _describe_view(base, base_tokens, text_bytes),
        "made": _describe_view(made, int(frequencies.sum()), text_bytes),
        "text_bytes": text_bytes,
        "new_tokens": {
            "count": len(new),
            "used": int(np.count_nonzero(frequencies[new])),
            "top": [
                {
                    "id": token,
                    "text": made_spellings[token].decode(errors="backslashreplace"),
                    "frequency": int(frequencies[token]),
                }
                for token in top
                if frequencies[token]
            ],
        },
        "base_tokens_kept": len(known & set(made_spellings.values())) / len(known),
    }


def metrics(report: dict[str, Any]) -> dict[str, float]:
    """The main numbers of a report."""
    return {
        "tokens": float(report["made"]["tokens"]),
        "new_tokens": float(report["new_tokens"]["count"]),
        "base_tokens_kept": report["base_tokens_kept"],
        "bytes_per_token": report["made"]["bytes_per_token"],
        "base_bytes_per_token": report["base"]["bytes_per_token"],
    }


def summary(report: dict[str, Any]) -> str:
    """The same in one line for a person."""
    base, made, new = report["base"], report["made"], report["new_tokens"]
    return (
        f"{made['tokens']:,} tokens (before {base['tokens']:,}), {new['count']:,} of them new, of which "
        f"{new['used']:,} occur in the text; {made['bytes_per_token']:.3f} bytes a token "
        f"(before {base['bytes_per_token']:.3f}); digits {made['digit_scheme']} (before {base['digit_scheme']})"
    )


def _spellings(view: ByteView) -> dict[int, bytes]:
    """The bytes of every token that has some."""
    spellings = {token: view.token_bytes(token) for token in range(view.vocab_size)}
    return {token: spelling for token, spelling in spellings.items() if spelling}


def _describe_view(view: ByteView, tokens_of_text: int, text_bytes: int) -> dict[str, Any]:
    return {
        "size": view.vocab_size,
        "tokens": int((view.kinds != TokenKind.MISSING).sum()),
        "special": len(view.special_tokens),
        "digit_scheme": view.digit_scheme,
        "exact": view.exact,
        "inexact_reasons": list(view.inexact_reasons),
        "fingerprint": view.fingerprint,
        "tokens_of_text": tokens_of_text,
        "bytes_per_token": text_bytes / tokens_of_text,
    }
