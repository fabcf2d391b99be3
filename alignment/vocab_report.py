"""A vocabulary alignment described as plain JSON values, for a file and for a person."""

from __future__ import annotations

from typing import Any

import numpy as np

from alignment.anchors import anchors
from alignment.byte_view import ByteView
from alignment.digit_verdict import digit_verdict
from alignment.special_tokens import Roles
from alignment.token_flags import token_flags
from alignment.token_table import TokenKind
from alignment.vocab import Match, VocabAlignment

SCHEMA_VERSION = 1
_LISTED_TOKENS = 100


def describe(
    alignment: VocabAlignment, source: ByteView, target: ByteView, *, target_roles: Roles | None = None
) -> dict[str, Any]:
    """What a person wants to know of an alignment.

    Returns:
        A JSON object:

        * ``schema_version``: raised when a key changes its meaning.
        * ``fingerprint``: of the alignment; ``source``, ``target``: of each tokenizer its ``fingerprint``, ``size``
          (highest id + 1), ``tokens`` (ids that exist), ``digit_scheme``, ``exact`` and ``inexact_reasons``.
        * ``matches``: number of target tokens by kind of match. ``none`` does not count ids that do not exist.
        * ``shared``: share of the target's tokens that spell the same bytes as a source token; ``copied``: that
          correspond to exactly one; ``coverage``: that are made from source tokens at all.
        * ``mean_pieces``: source tokens in a decomposition, on average.
        * ``flags``: for each flag of ``TokenFlags`` the number of target ``tokens`` that have it, and ``shared``,
          ``copied`` and ``coverage`` among them (null where there is none).
        * ``anchors``: number of anchors under the default policy.
        * ``digits``: ``verdict`` (same, clash, unknown) and a ``sentence`` about it.
        * ``unmatched``: ``count`` of the tokens without counterpart and the first of them, id -> ``tokens``.
    """
    present = target.kinds != TokenKind.MISSING
    shared = alignment.match == Match.BYTES
    covered = alignment.match != Match.NONE
    decomposed = alignment.piece_counts[alignment.match == Match.PIECES]
    unmatched = np.flatnonzero(present & ~covered).tolist()
    digits = digit_verdict(source.digit_scheme, target.digit_scheme, names=("student", "target"))

    def shares(mask: np.ndarray) -> dict[str, Any]:
        masks = {"shared": shared, "copied": alignment.copied, "coverage": covered}
        return {name: float(kind[mask].mean()) if mask.any() else None for name, kind in masks.items()}

    flags = token_flags(target, target_roles).masks()
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": alignment.fingerprint,
        "source": _describe_view(source),
        "target": _describe_view(target),
        "matches": {match.name.lower(): int((alignment.match[present] == match).sum()) for match in Match},
        **shares(present),
        "mean_pieces": float(decomposed.mean()) if len(decomposed) else 0.0,
        "flags": {name: {"tokens": int(mask.sum()), **shares(mask)} for name, mask in flags.items()},
        "anchors": len(anchors(alignment, source, target)[0]),
        "digits": {"verdict": digits.verdict, "sentence": digits.sentence},
        "unmatched": {
            "count": len(unmatched),
            "tokens": {str(token): spelling(target, token) for token in unmatched[:_LISTED_TOKENS]},
        },
    }


def _describe_view(view: ByteView) -> dict[str, Any]:
    return {
        "fingerprint": view.fingerprint,
        "size": view.vocab_size,
        "tokens": int((view.kinds != TokenKind.MISSING).sum()),
        "digit_scheme": view.digit_scheme,
        "exact": view.exact,
        "inexact_reasons": list(view.inexact_reasons),
    }


def spelling(view: ByteView, token: int) -> str:
    """A token in print: the string of a special one, otherwise its text with undecodable bytes escaped."""
    return view.special_tokens.get(token) or (view.token_bytes(token) or b"").decode(errors="backslashreplace")
