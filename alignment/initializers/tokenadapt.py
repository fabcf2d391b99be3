"""TokenAdapt: pieces and neighbours weighted by the similarity of texts (embedding_init.md §1.12).

Sharthak et al., "Achieving Tokenizer Flexibility in Language Models through Heuristic Adaptation and Supertoken
Learning" (arXiv 2505.09738). A text encoder gives every token's text an embedding; s are cosines of those. For a token
with the pieces p::

    local:   softmax((softmax(s_p) + length_p / length) / 2 / T)  over the pieces
    global:  softmax(s / T)  over the k old tokens of the highest s, without weights below the threshold
    row  =   (1 - g) local rows + g global rows

Where one part is missing the other stands alone. On purpose unlike the released code: lengths are in bytes, so that
those of the pieces add up; tokens without any text (parts of characters, mere white space) are not decoded to
replacement characters but have similarity 0 as pieces and are never neighbours; and where both parts are missing
nothing is made up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.initializers.rows import SparseRows

_QUERY_ROWS = 128
_TIE_STEPS = 1_000_000  # similarities that round to the same millionth are equal


def piece_similarities(embeddings: Tensor, pieces: Tensor, piece_embeddings: Tensor) -> Tensor:
    """The inner product of each token's embedding with those of its pieces, [M, K]; 0 where there is no piece.

    Args:
        embeddings: [M, D], of the tokens.
        pieces: int64 [M, K], rows of ``piece_embeddings`` [V, D]; -1 pads.
    """
    similarities = torch.zeros(pieces.shape, dtype=embeddings.dtype)
    # Piece by piece: few tokens have many, and [M, K, D] would be made of padding.
    for place in range(pieces.shape[1]):
        rows = (pieces[:, place] >= 0).nonzero().flatten()
        similarities[rows, place] = (embeddings[rows] * piece_embeddings[pieces[rows, place]]).sum(dim=1)
    return similarities


def local_weights(similarities: Tensor, lengths: Tensor, used: Tensor, temperature: float) -> Tensor:
    """Weights of a token's pieces, [M, K] in the dtype of ``similarities``; 0 where not ``used``.

    Args:
        similarities: [M, K], cosine of each piece's text with the token's.
        lengths: [M, K], of each piece, in any unit.
        used: bool [M, K], False where a token has fewer than K pieces.
    """
    lengths = lengths.to(similarities.dtype) * used
    shares = lengths / lengths.sum(dim=1, keepdim=True).clamp(min=torch.finfo(lengths.dtype).tiny)
    return _softmax((_softmax(similarities, used) + shares) / 2 / temperature, used)


def global_weights(similarities: Tensor, used: Tensor, temperature: float, threshold: float) -> Tensor:
    """Weights of a token's nearest old tokens, [M, K]; all 0 where none reaches the threshold.

    Args:
        similarities: [M, K].
        used: bool [M, K], False where there are fewer than K.
        threshold: weights below it are left out and the others scaled to sum to one.
    """
    weights = _softmax(similarities / temperature, used)
    weights = torch.where(weights >= threshold, weights, 0)
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def _softmax(scores: Tensor, used: Tensor) -> Tensor:
    """The softmax of the used scores, 0 elsewhere; all 0 in a row that uses none."""
    weights = torch.softmax(scores.masked_fill(~used, torch.finfo(scores.dtype).min), dim=1)
    return torch.where(used, weights, 0)


def nearest(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar keys of each query by inner product, most similar first; of equal ones the lower index.

    Many texts have the same embedding (case and spaces are nothing to many encoders), so ties are common.

    Args:
        queries, keys: float32 [M, D] and [N, D], of norm 1 or 0.

    Returns:
        int64 [M, min(k, N)] and their similarities. At most 128 rows of M x N similarities exist at once.
    """
    k, size = min(k, len(keys)), len(keys)
    order = torch.arange(size - 1, -1, -1)
    indices = torch.empty(len(queries), k, dtype=torch.int64)
    similarities = torch.empty(len(queries), k)
    for start in range(0, len(queries), _QUERY_ROWS):
        block = queries[start : start + _QUERY_ROWS]
        # Products of one shape round alike, so that a row does not depend on the others of its block.
        padded = torch.nn.functional.pad(block, (0, 0, 0, _QUERY_ROWS - len(block)))
        products = (padded @ keys.T)[: len(block)]
        ranks = (products * _TIE_STEPS).round_().long() * size + order
        found = size - 1 - ranks.topk(k, dim=1).values % size
        indices[start : start + len(block)] = found
        similarities[start : start + len(block)] = products.gather(1, found)
    return indices, similarities


def mixed_rows(pieces: SparseRows, neighbours: SparseRows, global_weight: float) -> SparseRows:
    """(1 - g) of the pieces and g of the neighbours; a row in which one has no weight takes all from the other.

    Args:
        pieces, neighbours: of M rows each, whose weights sum to 1 or are all 0.
    """
    has_local, has_global = (part.weights.sum(dim=1, keepdim=True) > 0 for part in (pieces, neighbours))
    share = torch.where(has_local & has_global, global_weight, has_global.to(pieces.weights.dtype))
    weights = torch.cat([(1 - share) * pieces.weights, share * neighbours.weights], dim=1)
    indices = torch.cat([pieces.indices, neighbours.indices], dim=1)
    return SparseRows(indices.masked_fill(weights == 0, -1), weights)
