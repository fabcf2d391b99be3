"""Anchors: tokens that both vocabularies have and that tie one embedding space to another.

Initialisers such as OMP, FOCUS or CLP express a new token through anchors, so an anchor must mean the same on both
sides and must have been trained (embedding_init.md §0.2, §1.3, §6.1). Rows that were never trained or have no norm
are a matter of the matrices, not of the vocabularies: the initialiser drops those.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment.byte_view import ByteView
from alignment.token_flags import token_flags
from alignment.vocab import AlignmentError, Match, VocabAlignment


@dataclass(frozen=True)
class AnchorPolicy:
    """Which copies may be anchors. The defaults are those that embedding_init.md §6.1 asks for.

    Attributes:
        special: special tokens that correspond by role or string: what they mean is up to each model's training.
        byte_fallback: byte-fallback tokens: seen only in rare characters.
        partial_utf8: parts of characters: one part belongs to many characters.
        reserved: tokens named as unused or reserved: never trained.
        added: tokens added after the vocabulary was made, which may be little trained.
        digits: numbers of two and more digits where the two tokenizers cut numbers differently.
    """

    special: bool = False
    byte_fallback: bool = False
    partial_utf8: bool = False
    reserved: bool = False
    added: bool = True
    digits: bool = False


def anchors(
    alignment: VocabAlignment,
    source: ByteView,
    target: ByteView,
    *,
    policy: AnchorPolicy | None = None,
    target_rows: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The N pairs of ids that may serve as anchors, in the order of their target ids.

    Only exact matches count: the same bytes and, if ``policy`` says so, corresponding special tokens and a byte on one
    side that is a byte-fallback token on the other; what is folded, overridden or decomposed is never an anchor.
    Neither id occurs twice: of several target tokens with one source token the lowest stays.

    Args:
        policy: None for the defaults.
        target_rows: rows of the matrix of a model that uses the target tokenizer; ids from there on have none.

    Returns:
        source ids int32 [N], target ids int32 [N].

    Raises:
        AlignmentError: the alignment was made for other tokenizers.
    """
    if (alignment.source_fingerprint, alignment.target_fingerprint) != (source.fingerprint, target.fingerprint):
        raise AlignmentError(f"the alignment is not that of the tokenizers {source.name!r} and {target.name!r}")
    policy = policy or AnchorPolicy()
    allowed = alignment.match == Match.BYTES
    if policy.special:
        allowed |= np.isin(alignment.match, (Match.ROLE, Match.STRING))
    if policy.byte_fallback:
        allowed |= alignment.match == Match.BYTE_FALLBACK
    target_ids = np.flatnonzero(allowed[:target_rows])
    source_ids = alignment.pieces[alignment.offsets[target_ids]]

    clash = source.digit_scheme != target.digit_scheme
    kept = ~(_excluded(source, policy, clash)[source_ids] | _excluded(target, policy, clash)[target_ids])
    source_ids, target_ids = source_ids[kept], target_ids[kept]
    _, first = np.unique(source_ids, return_index=True)
    first.sort()
    return source_ids[first].astype(np.int32), target_ids[first].astype(np.int32)


def unused_rows(view: ByteView, rows: int) -> np.ndarray:
    """bool [rows]: rows of a model's matrix that no text uses: padding, gaps of the vocabulary, reserved tokens."""
    unused = np.ones(rows, dtype=bool)
    known = min(view.vocab_size, rows)
    unused[:known] = token_flags(view).reserved[:known]
    unused[view.missing_ids[view.missing_ids < rows]] = True
    return unused


def _excluded(view: ByteView, policy: AnchorPolicy, digit_schemes_clash: bool) -> np.ndarray:
    """bool [V]: tokens that the policy rules out, whatever they are matched with."""
    flags = token_flags(view)
    excluded = np.zeros(view.vocab_size, dtype=bool)
    for allowed, mask in (
        (policy.special, flags.special),
        (policy.byte_fallback, flags.byte_fallback),
        (policy.partial_utf8, flags.partial_utf8),
        (policy.reserved, flags.reserved),
        (policy.added, flags.added),
        (policy.digits or not digit_schemes_clash, flags.digit_length > 1),
    ):
        if not allowed:
            excluded |= mask
    return excluded
