"""Other tokens for the same bytes: an encoding some of whose tokens are replaced by others that spell what they did."""

from __future__ import annotations

import numpy as np

from alignment.encoding import Encoding


def respell(
    encoding: Encoding, ids: np.ndarray, group: np.ndarray, last: np.ndarray, byte_lengths: np.ndarray
) -> Encoding:
    """The encoding of the same text by other tokens.

    The T old tokens form G groups, one after the other; the U new ones stand for the same groups. A group that changes
    holds only tokens that are verbatim and not special. Flags of a group are those of its last old token. Ends are
    counted from the end of the group, because a space that the tokenizer puts before the text is part of the first
    token's bytes and no byte of the text.

    Args:
        encoding: the old tokens.
        ids: int32 [U], the new ones.
        group: int64 [U], the group of each, never decreasing; every group has one at least.
        last: int64 [G], index of each group's last old token.
        byte_lengths: int32 [V], of the vocabulary.
    """
    ends = np.cumsum(byte_lengths[ids], dtype=np.int64)
    last_new = np.searchsorted(group, np.arange(len(last)), side="right") - 1
    parent = last[group]
    return Encoding(
        ids=ids,
        byte_ends=encoding.byte_ends[parent] - (ends[last_new[group]] - ends),
        special=encoding.special[parent],
        boundary=encoding.boundary[parent],
        verbatim=encoding.verbatim[parent],
        text_bytes=encoding.text_bytes,
    )
