"""From token scores to chunk scores: the causal shift, segment sums, and the gamma merge.

Legend: B sequences, T tokens, C chunks. ``chunk_ids [B, T]`` gives each token the index of its chunk, or -1; ids
count up along a sequence. A token's own score sits at the token's own index; its boundary log-probability, which is
about the token after it, sits there too.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from losses.output import ratio
from losses.scores import IGNORE_INDEX


def shift_labels(ids: Tensor, scored: Tensor) -> Tensor:
    """What each position of the model predicts: labels ``[B, T]`` int64 for ``token_scores``.

    Args:
        ids: ``[B, T]`` token ids.
        scored: ``[B, T]`` bool, tokens whose log-probability is wanted. Index 0 has none whatever it says: nothing
            predicts it. The first token of a packed document must be False for the same reason.

    Returns:
        Position t holds the id of token t + 1 if that token is scored, else -100.
    """
    labels = torch.full_like(ids, IGNORE_INDEX, dtype=torch.long)
    labels[:, :-1] = torch.where(scored[:, 1:], ids[:, 1:].long(), IGNORE_INDEX)
    return labels


def shift_scores(label_logp: Tensor) -> Tensor:
    """Move log-probabilities ``[B, T]`` from the predicting position to the token predicted; index 0 gets 0."""
    return torch.nn.functional.pad(label_logp[:, :-1], (1, 0))


def chunk_sums(values: Tensor, chunk_ids: Tensor, num_chunks: int) -> Tensor:
    """Sum ``values [B, T]`` over each chunk: ``[B, num_chunks]``; tokens with id -1 contribute nothing."""
    sums = values.new_zeros((values.shape[0], num_chunks + 1))
    return sums.scatter_add(1, _columns(chunk_ids), values)[:, 1:]


def chunk_sizes(chunk_ids: Tensor, num_chunks: int) -> Tensor:
    """Number of tokens of each chunk: ``[B, num_chunks]`` int64."""
    return chunk_sums(torch.ones_like(chunk_ids, dtype=torch.long), chunk_ids, num_chunks)


def token_coverage(scored: Tensor, chunk_ids: Tensor, kept: Tensor) -> Tensor:
    """Scored tokens of the chunks in ``kept [B, C]``, of all scored tokens: a metric ``[2]`` as LossOutput wants it."""
    scored = scored.clone()
    scored[:, 0] = False
    return ratio((chunk_sums(scored.long(), chunk_ids, kept.shape[1]) * kept).sum(), scored.sum())


def first_token_index(chunk_ids: Tensor, num_chunks: int) -> Tensor:
    """Index of the first token of each chunk: ``[B, num_chunks]`` int64, -1 for a chunk without tokens."""
    length = chunk_ids.shape[1]
    first = _reduce_index(chunk_ids, num_chunks, initial=length, reduce="amin")
    return first.masked_fill(first == length, -1)


def last_token_index(chunk_ids: Tensor, num_chunks: int) -> Tensor:
    """Index of the last token of each chunk: ``[B, num_chunks]`` int64, -1 for a chunk without tokens."""
    return _reduce_index(chunk_ids, num_chunks, initial=-1, reduce="amax")


def chunk_last(values: Tensor, chunk_ids: Tensor, num_chunks: int) -> Tensor:
    """The entry of ``values [B, T]`` or ``[B, T, D]`` at the last token of each chunk; 0 for a chunk without tokens.

    Returns:
        ``[B, num_chunks]`` or ``[B, num_chunks, D]``.
    """
    index = last_token_index(chunk_ids, num_chunks)
    batch = torch.arange(len(values), device=values.device)[:, None]
    missing = (index < 0).reshape(*index.shape, *(1 for _ in values.shape[2:]))
    return values[batch, index.clamp(min=0)].masked_fill(missing, 0)


def chunk_end_mask(chunk_ids: Tensor, num_chunks: int) -> Tensor:
    """Which tokens end a chunk, ``[B, T]`` bool: where ``token_scores`` must give the boundary log-probability."""
    index = last_token_index(chunk_ids, num_chunks)
    ends = torch.zeros_like(chunk_ids, dtype=torch.bool)
    batch, chunk = (index >= 0).nonzero(as_tuple=True)
    ends[batch, index[batch, chunk]] = True
    return ends


def chunk_valid(scored: Tensor, chunk_ids: Tensor, num_chunks: int) -> Tensor:
    """Which chunks can be compared on this side: ``[B, num_chunks]`` bool.

    A chunk is valid if it has a token and all its tokens are ``scored [B, T]``; index 0 of a sequence never is. The
    other side decides too: a chunk is compared only if it is valid on both.
    """
    scored = scored.clone()
    scored[:, 0] = False
    tokens = chunk_sizes(chunk_ids, num_chunks)
    return (tokens > 0) & (chunk_sums(scored.long(), chunk_ids, num_chunks) == tokens)


def chunk_adjacent(chunk_ids: Tensor, num_chunks: int) -> Tensor:
    """Which chunks begin right after the chunk before them: ``[B, num_chunks]`` bool, False for chunk 0.

    Tokens without a chunk in between (a special token, a rejected chunk) make two chunks non-adjacent.
    """
    first = first_token_index(chunk_ids, num_chunks)
    last = last_token_index(chunk_ids, num_chunks)
    adjacent = torch.zeros_like(first, dtype=torch.bool)
    adjacent[:, 1:] = (first[:, 1:] == last[:, :-1] + 1) & (last[:, :-1] >= 0)
    return adjacent


class TokenizedSide(Protocol):
    """One model's tokens of a batch of texts.

    Attributes:
        ids: int64 [B, T] token ids.
        chunk: int64 [B, T], the token's chunk, or -1.
        scored: bool [B, T], tokens that have a log-probability and take part in the loss; never index 0.
        lengths: int64 [B, T], bytes of text that the token stands for; 0 for special tokens.
        window: int64 [B, T], the text that the token belongs to, numbered alike on both sides; -1 on padding. A row may
            hold several, one after the other; no chunk is in two, and no first token of a text is scored.
    """

    ids: Tensor
    chunk: Tensor
    scored: Tensor
    lengths: Tensor
    window: Tensor


class AlignedRows(NamedTuple):
    """N chunks that can be compared, and where each model predicts the chunk's first token: after the same bytes.

    Attributes:
        teacher, student: int64 [N], flat positions in [B * T] (T differs) whose predictions are about the chunk's first
            token: the token before it.
        chunk: int64 [N], flat chunk numbers in [B * C].
        one_to_one: bool [N], chunks of one token on either side, which then have the same bytes.
    """

    teacher: Tensor
    student: Tensor
    chunk: Tensor
    one_to_one: Tensor


def aligned_rows(teacher: TokenizedSide, student: TokenizedSide, num_chunks: int) -> AlignedRows:
    """The positions of both models that predict the start of the same chunk, for every chunk valid on both sides."""
    valid = chunk_valid(teacher.scored, teacher.chunk, num_chunks)
    valid = valid & chunk_valid(student.scored, student.chunk, num_chunks)
    batch, chunk = valid.nonzero(as_tuple=True)
    rows, single = [], []
    for side in (teacher, student):
        first = first_token_index(side.chunk, num_chunks)[batch, chunk]
        last = last_token_index(side.chunk, num_chunks)[batch, chunk]
        rows.append(batch * side.chunk.shape[1] + first - 1)
        single.append(first == last)
    return AlignedRows(*rows, chunk=batch * num_chunks + chunk, one_to_one=single[0] & single[1])


def scored_rows(scored: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions in [B * T] that predict each scored token, and those tokens' own: int64 [N] each."""
    scored = scored.clone()
    scored[:, 0] = False
    tokens = scored.flatten().nonzero().squeeze(1)
    return tokens - 1, tokens


class AlignedScores(NamedTuple):
    """One model's token scores on a batch of texts, with the chunk that each token belongs to.

    Attributes:
        label_logp: ``[B, T]`` log-probability of each token, at its own index (``shift_scores``).
        boundary_logp: ``[B, T]`` log-probability of a boundary after each token, needed where a chunk ends; None where
            nobody asks for it.
        scored: ``[B, T]`` bool, tokens that have a log-probability and take part in the loss.
        chunk_ids: ``[B, T]`` integer, the token's chunk or -1.
    """

    label_logp: Tensor
    boundary_logp: Tensor | None
    scored: Tensor
    chunk_ids: Tensor


class ChunkScores(NamedTuple):
    """Log-probabilities of chunks, or of groups of merged chunks, for both models.

    Attributes:
        teacher_logp, student_logp: ``[B, C]``, of the chunk's tokens.
        teacher_boundary, student_boundary: ``[B, C]``, of a boundary after the chunk.
        valid: ``[B, C]`` bool; the other entries mean nothing where it is False.
    """

    teacher_logp: Tensor
    student_logp: Tensor
    teacher_boundary: Tensor
    student_boundary: Tensor
    valid: Tensor


def merge_chunks(
    chunks: ChunkScores, adjacent: Tensor, gamma: float, max_chunks: int | None = None
) -> tuple[ChunkScores, Tensor]:
    """Fuse each chunk with the next until the teacher expects a boundary there (alm.md §1.1, condition c).

    A group ends after a chunk with ``exp(teacher_boundary) > gamma``. It also ends, without that evidence, before a
    chunk that is invalid or not adjacent, at the end of the sequence (a group is contiguous text), and when it is full.
    Such groups are kept, and reported as open.

    Args:
        chunks: scores of the single chunks.
        adjacent: ``[B, C]`` bool, True where a chunk begins right after the one before it, on both sides.
        gamma: smallest boundary probability that is not enough; below 0 nothing merges, from 1 on everything does.
        max_chunks: chunks of a full group; None for no limit. Scripts without spaces would merge whole sentences.

    Returns:
        The groups, of the same shape, with the last chunk's boundary log-probability; and ``[B, C]`` bool, which of
        them are open.
    """
    valid, num_chunks = chunks.valid, chunks.valid.shape[1]
    expected = chunks.teacher_boundary.exp() > gamma
    continues = torch.zeros_like(valid)
    continues[:, 1:] = adjacent[:, 1:] & valid[:, 1:] & valid[:, :-1] & ~expected[:, :-1]
    if max_chunks is not None:
        index = torch.arange(num_chunks, device=valid.device).expand(valid.shape)
        start = index.masked_fill(continues, 0).cummax(1).values
        continues = continues & ((index - start) % max_chunks != 0)
    group = (~continues).long().cumsum(1) - 1
    group = group.masked_fill(~valid, -1)
    groups = ChunkScores(
        teacher_logp=chunk_sums(chunks.teacher_logp, group, num_chunks),
        student_logp=chunk_sums(chunks.student_logp, group, num_chunks),
        teacher_boundary=chunk_last(chunks.teacher_boundary, group, num_chunks),
        student_boundary=chunk_last(chunks.student_boundary, group, num_chunks),
        valid=last_token_index(group, num_chunks) >= 0,
    )
    return groups, groups.valid & ~chunk_last(expected, group, num_chunks)


def _columns(chunk_ids: Tensor) -> Tensor:
    """Scatter indices into one column more than there are chunks: column 0, which callers drop, takes id -1."""
    return chunk_ids.long() + 1


def _reduce_index(chunk_ids: Tensor, num_chunks: int, *, initial: int, reduce: str) -> Tensor:
    index = torch.arange(chunk_ids.shape[1], device=chunk_ids.device).expand(chunk_ids.shape)
    start = index.new_full((len(chunk_ids), num_chunks + 1), initial)
    return start.scatter_reduce(1, _columns(chunk_ids), index, reduce)[:, 1:]
