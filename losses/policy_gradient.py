"""Policy gradient of the reverse KL on text that the student wrote (arXiv 2306.08543, 2606.09456).

On a chunk that the student sampled, with the log-probability T under the teacher and S under the student, ``S - T`` is
an unbiased estimate of the reverse KL between the two models' distributions of that chunk, given the text before it.
The gradient of its expectation is that of the chunk's log-probability times an advantage that is held constant:

    grad E[S - T] = -E[A grad S],    A = T - S    (the term E[grad S] is 0)

Every student token of the chunk gets an advantage:

* ``whole``: A itself. In expectation over the student's own samples, at temperature 1 and from its whole vocabulary,
  the result is the gradient of every chunk's reverse KL;
* ``additive``: A / m for each of m tokens, and ``multiplicative``: in proportion to the student's own log-probabilities
  (``losses.dpca``): smaller steps for longer chunks, and for chunks of several tokens another gradient.

A token gets nothing for the chunks after its own (a discount of 0), so that a long text adds no variance to its start.

The value is the estimate ``S - T``, which is what a curve should show and may be below 0 by chance; it is not the
function whose derivative the gradient is.

Legend: B sequences, T tokens, C chunks.
"""

from __future__ import annotations

from torch import Tensor

from losses.chunks import AlignedScores, chunk_sizes, chunk_sums, chunk_valid, token_coverage
from losses.dpca import token_advantages
from losses.output import LossOutput, ratio

CREDITS = ("whole", "additive", "multiplicative")


def policy_gradient_loss(
    teacher: AlignedScores,
    student: AlignedScores,
    num_chunks: int,
    *,
    credit: str = "whole",
    max_chunk_tokens: int | None = None,
    advantage_clip: float | None = 5.0,
) -> LossOutput:
    """Estimated reverse KL in nats, with the policy gradient; the units are student tokens.

    Chunks count that are valid on both sides and short enough; their tokens' number follows from the alignment alone.
    Needs the log-probabilities of the sampled text under the teacher and nothing else.

    Args:
        teacher, student: scores of the same B texts, without boundaries; T may differ, chunk ids name the same chunks.
        num_chunks: C, at least one more than the largest chunk id.
        credit: ``whole``, ``additive`` or ``multiplicative``, see the top of this module.
        max_chunk_tokens: chunks of more student tokens are left out; None keeps all.
        advantage_clip: nats beyond which an advantage pulls no harder; None for no clipping.

    Returns:
        Sum over the tokens and their number; metrics: ``token_coverage`` (scored student tokens that count),
        ``advantage`` (the mean size of a token's) and ``clipped_share``.

    Raises:
        ValueError: the credit is unknown.
    """
    if credit not in CREDITS:
        raise ValueError(f"unknown credit {credit!r}; known: {', '.join(CREDITS)}")
    valid = chunk_valid(teacher.scored, teacher.chunk_ids, num_chunks)
    valid = valid & chunk_valid(student.scored, student.chunk_ids, num_chunks)
    sizes = chunk_sizes(student.chunk_ids, num_chunks)
    kept = valid if max_chunk_tokens is None else valid & (sizes <= max_chunk_tokens)
    in_kept = (student.chunk_ids >= 0) & kept.gather(1, student.chunk_ids.long().clamp(min=0))

    logp = student.label_logp.masked_fill(~in_kept, 0)
    gaps = chunk_sums(teacher.label_logp.detach(), teacher.chunk_ids, num_chunks)
    gaps = (gaps - chunk_sums(logp.detach(), student.chunk_ids, num_chunks)).masked_fill(~kept, 0)
    advantage = _advantages(gaps, logp.detach(), student.chunk_ids, sizes, credit).masked_fill(~in_kept, 0)
    limit = float("inf") if advantage_clip is None else advantage_clip
    surrogate = -(advantage.clamp(-limit, limit) * logp).sum()
    count = in_kept.sum()
    return LossOutput(
        # The value is the estimate, the gradient is the surrogate's.
        total=-gaps.sum() + surrogate - surrogate.detach(),
        count=count,
        metrics={
            "token_coverage": token_coverage(student.scored, student.chunk_ids, kept),
            "advantage": ratio(advantage.abs().sum(), count),
            "clipped_share": ratio((advantage.abs() > limit).sum(), count),
        },
    )


def _advantages(gaps: Tensor, logp: Tensor, chunk_ids: Tensor, sizes: Tensor, credit: str) -> Tensor:
    """``[B, T]`` advantage of each student token; tokens without a chunk get anything."""
    if credit == "whole":
        return gaps.gather(1, chunk_ids.long().clamp(min=0))
    return token_advantages(gaps, logp, chunk_ids, sizes, credit)
