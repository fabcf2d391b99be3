"""Fast Vocabulary Transfer (Gee et al., EMNLP Industry 2022; embedding_init.md §1.2).

row(t) = E[s]                    if exactly one source token s corresponds to t, bit by bit
         mean over p of E[p]     if t is decomposed into source tokens p; a repeated token counts each time
         mean of all rows of E   otherwise
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from alignment.vocab import AlignmentError, Match, VocabAlignment


def fvt(rows: Tensor, alignment: VocabAlignment) -> Tensor:
    """Make the rows of the target vocabulary from those of the source.

    Means are accumulated in float32 (float64 for float64 rows) and rounded once.

    Args:
        rows: [V_source, D] of any floating dtype: an embedding or output matrix, or a bias with D = 1. Rows beyond
            the source's vocabulary are padding: nothing is made from them.

    Returns:
        [V_target, D] in the dtype of ``rows``.

    Raises:
        AlignmentError: the alignment names more source ids than there are rows.
    """
    if alignment.source_size > len(rows):
        raise AlignmentError(
            f"the source tokenizer has ids up to {alignment.source_size - 1}, the matrix has only {len(rows)} rows: "
            "the model and the tokenizer do not belong together"
        )
    precise = rows[: alignment.source_size].to(torch.promote_types(rows.dtype, torch.float32))
    pieces, starts = torch.from_numpy(alignment.pieces), torch.from_numpy(alignment.offsets[:-1])
    made = torch.empty(alignment.target_size, rows.shape[1], dtype=rows.dtype)

    copied = torch.from_numpy(alignment.copied)
    made[copied] = rows[pieces[starts[copied]]]
    decomposed = torch.from_numpy(alignment.match == Match.PIECES)
    means = F.embedding_bag(pieces, precise, starts.to(pieces.dtype), mode="mean")
    made[decomposed] = means[decomposed].to(rows.dtype)
    made[torch.from_numpy(alignment.match == Match.NONE)] = precise.mean(dim=0).to(rows.dtype)
    return made
