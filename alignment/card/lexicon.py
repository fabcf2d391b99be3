"""How many of a text's tokens are words or morphemes of a lexicon: validity (%TR) and purity (%Pure).

Source: arXiv 2502.07057, evaluation.md §10, for any language that has a lexicon. The paper's text divides by all
tokens, its code and table by the different ones: here both, by name. Neither goes with quality over all tokenizers of
the paper's own table (r = .10 for %TR, -.51 for %Pure): they are reported and decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Lexicon:
    """Words, roots and affixes as they are written.

    Attributes:
        valid: all of them.
        pure: those that do not decompose, a subset; empty where the lexicon does not say.
    """

    valid: frozenset[str]
    pure: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.valid:
            raise ValueError("a lexicon holds at least one entry")
        if not self.pure <= self.valid:
            raise ValueError(f"{min(self.pure - self.valid)!r} is a root or affix, but not an entry of the lexicon")


@dataclass(frozen=True)
class LexiconUse:
    """Shares in [0, 1] of the tokens of a text; tokens of white space alone are left out.

    Attributes:
        types: different tokens, white space around them left out of account.
        tokens: all of them.
        valid_types, valid_tokens: share of either that is in the lexicon, as written or in lower case.
        pure_types, pure_tokens: share that does not decompose; None where the lexicon does not say.
    """

    types: int
    tokens: int
    valid_types: float
    valid_tokens: float
    pure_types: float | None
    pure_tokens: float | None


def lexicon_use(counts: Mapping[str, int], lexicon: Lexicon) -> LexiconUse | None:
    """Look up the tokens of a text.

    Args:
        counts: token as text -> occurrences, all positive.

    Returns:
        None if there is no token but white space.
    """
    words: dict[str, int] = {}
    for token, count in counts.items():
        if word := token.strip():
            words[word] = words.get(word, 0) + count
    if not words:
        return None
    valid_types, valid_tokens = _shares(words, lexicon.valid)
    pure_types, pure_tokens = _shares(words, lexicon.pure) if lexicon.pure else (None, None)
    return LexiconUse(len(words), sum(words.values()), valid_types, valid_tokens, pure_types, pure_tokens)


def _shares(words: Mapping[str, int], entries: frozenset[str]) -> tuple[float, float]:
    """Share of the different words, and of their occurrences, that are among the entries."""
    found = [word for word in words if word in entries or word.lower() in entries]
    return len(found) / len(words), sum(words[word] for word in found) / sum(words.values())
