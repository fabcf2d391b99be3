"""Byte-canonical surface forms: the few source tokens through which a hypernetwork sees a new token.

Zero-Shot Tokenizer Transfer (Minixhofer et al., NeurIPS 2024), embedding_init.md §1.14. A token of any tokenizer is
its bytes, and the student's own tokenizer spells those, all 256 byte values included.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from alignment.initializers.pieces import padded_positions
from alignment.segmentation import ByteSegmenter
from alignment.vocab import VocabAlignment


def surface_forms(tokens: Sequence[bytes], segmenter: ByteSegmenter, max_pieces: int) -> Tensor:
    """int64 [M, K]: the first ``max_pieces`` source ids that spell each token, -1 behind the last.

    K is the most that a token of this block has, at least 1. A token that the source cannot spell has none.
    """
    spelled = segmenter.segment(tokens)
    pieces = np.array([piece for pieces in spelled for piece in pieces], dtype=np.int64)
    offsets = np.cumsum([0, *map(len, spelled)], dtype=np.int64)
    return _first(pieces, offsets, torch.arange(len(tokens)), max_pieces)


def aligned_forms(alignment: VocabAlignment, target_ids: Tensor, max_pieces: int) -> Tensor:
    """``surface_forms`` of target ids, int64 [M], whose pieces are known from an alignment.

    What the alignment decided (an override, a special token's role) counts.
    """
    return _first(alignment.pieces, alignment.offsets, target_ids, max_pieces)


def _first(pieces: np.ndarray, offsets: np.ndarray, rows: Tensor, max_pieces: int) -> Tensor:
    """The first entries of some rows of a CSR matrix, -1 behind the last."""
    positions, used = padded_positions(offsets, rows, max_pieces)
    forms = torch.full(used.shape, -1)
    forms[used] = torch.from_numpy(pieces).long()[positions[used]]
    return forms
