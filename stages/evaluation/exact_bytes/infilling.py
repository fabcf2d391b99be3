"""Filling in the middle of a text at any byte: the part before may end inside a token, or inside a character.

A model with tokens for it reads the part after first, then the part before, and goes on from there
(suffix-prefix-middle order, Bavarian et al., arXiv 2207.14255): what it writes continues the part before directly, so
that its coverings are summed over as anywhere else. In the other order a special token would stand right after the
cut, and nothing could be said of tokens across it. A model without such tokens is told nothing of the part after.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from alignment.byte_view import ByteView
from alignment.token_index import TokenIndex
from stages.evaluation.exact_bytes.scorer import ExactByteScorer
from stages.evaluation.exact_bytes.writing import continue_bytes, sample

Method = Literal["suffix-prefix-middle", "prefix only"]

_FAMILIES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Granite
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)


class Infilling(NamedTuple):
    """What was written between two parts, and whether the second was known."""

    middle: bytes
    method: Method


def infilling_ids(view: ByteView) -> tuple[int, int, int] | None:
    """The tokens that announce the part before, the part after and the middle; None for a tokenizer without."""
    strings = TokenIndex(view).strings
    for family in _FAMILIES:
        if all(string in strings for string in family):
            before, after, middle = (strings[string] for string in family)
            return before, after, middle
    return None


def fill_in(
    scorer: ExactByteScorer, before: bytes, after: str, *, max_bytes: int, draws: np.ndarray | None = None
) -> Infilling:
    """Write what stands between ``before`` and ``after``, until the model ends it or for ``max_bytes``.

    Args:
        before: bytes that UTF-8 text begins with, cut anywhere.
        draws: float64 [max_bytes] in [0, 1), one for every byte; None takes the most probable byte each time.

    Raises:
        NotText: no UTF-8 text begins with ``before``.
        InexactEncoding: the tokenizer does not spell one of the parts.
    """
    known = infilling_ids(scorer.covers.view)
    if known is not None:
        suffix = scorer.covers.canonical(after)
        scorer = scorer.behind((known[0], known[1], *suffix, known[2]))
    if draws is not None:
        (middle,) = sample(scorer, [before], draws[None, :max_bytes])
    else:
        (middle,) = continue_bytes(scorer, [before], lambda _, __, logp: int(logp.argmax()), max_bytes=max_bytes)
    return Infilling(middle, "prefix only" if known is None else "suffix-prefix-middle")
