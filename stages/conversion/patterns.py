"""Pre-tokenization regexes of published encodings, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping

PATTERNS: Mapping[str, str] = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
    # also Llama 3's
    "cl100k": (
        r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"""
        r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
    ),
    # also that of Qwen 2.5 and 3
    "qwen2": (
        r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"""
        r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
    ),
}


def resolve_pattern(pattern: str) -> str:
    """The regex called ``pattern``, or ``pattern`` itself if it is a regex.

    Raises:
        ValueError: it looks like a name, but no regex is called so; or it is no regex.
    """
    from tokenizers import Regex

    if pattern in PATTERNS:
        return PATTERNS[pattern]
    if re.fullmatch(r"[\w-]+", pattern):
        raise ValueError(f"unknown pattern {pattern!r}; known: {', '.join(PATTERNS)}, or write the regex itself")
    try:
        Regex(pattern)
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(f"{pattern!r} is no regex ({error})") from None
    return pattern
