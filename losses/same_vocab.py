"""Divergences between two next-token distributions over the same cells, one value a row.

Every divergence is a plain differentiable function of log-probabilities in nats, ``(teacher_logp, student_logp)``, both
[..., V], to values [...], for use on a block of rows (``losses.rowwise``). In the formulas q is the teacher and p the
student; the gradient is meant for the student. A probability of 0 (-inf) is allowed on either side: ``0 log 0`` is 0,
and where a formula asks for the logarithm of such a 0 it gets that of the smallest float32, so that values and
gradients stay finite.

Legend: V cells of both distributions, mostly tokens.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from losses.output import LossOutput
from losses.predictions import LinearHead, Predictions
from losses.rowwise import rowwise_loss

_LOG_OF_ZERO = math.log(2.0**-149)
_NO_MASS = -1e4
"""Log-probability whose exponential is 0 in any precision, and which logsumexp can still be differentiated at."""

RowDivergence = Callable[[Tensor, Tensor], Tensor]
"""Log-probabilities of teacher and student [..., V] -> the divergence of every row [...]."""


def kl(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """Forward KL, ``sum q (log q - log p)``, with the teacher's entropy: 0 where the two are equal."""
    return (teacher_logp.exp() * (_finite(teacher_logp) - _finite(student_logp))).sum(-1)


def reverse_kl(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """Reverse KL, ``sum p (log p - log q)``."""
    return kl(student_logp, teacher_logp)


def jeffreys(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """``KL + reverse KL``."""
    return ((teacher_logp.exp() - student_logp.exp()) * (_finite(teacher_logp) - _finite(student_logp))).sum(-1)


def jsd(teacher_logp: Tensor, student_logp: Tensor, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649); ``beta`` weights the teacher.

    ``beta KL(q || m) + (1 - beta) KL(p || m)`` with ``m = beta q + (1 - beta) p``. At the ends, where this is 0, it is
    the limit after division by the vanishing weight: forward KL for ``beta=0``, reverse KL for ``beta=1``. Between
    them nothing is rescaled: the value shrinks towards either end.
    """
    if beta == 0:
        return kl(teacher_logp, student_logp)
    if beta == 1:
        return reverse_kl(teacher_logp, student_logp)
    gap = _finite(student_logp) - _finite(teacher_logp)
    teacher_terms = beta * teacher_logp.exp() * _log_mixture(gap, 1 - beta)
    student_terms = (1 - beta) * student_logp.exp() * _log_mixture(-gap, beta)
    return -(teacher_terms + student_terms).sum(-1)


def tvd(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """Total variation distance, ``sum |q - p| / 2``; its gradient jumps where two probabilities are equal."""
    return (teacher_logp.exp() - student_logp.exp()).abs().sum(-1) / 2


def skew_kl(teacher_logp: Tensor, student_logp: Tensor, alpha: float = 0.1) -> Tensor:
    """``KL(q || alpha q + (1 - alpha) p)``: forward KL whose gradient is bounded (DistiLLM, arXiv 2402.03898).

    With ``alpha=0`` it is forward KL itself.
    """
    if alpha == 0:
        return kl(teacher_logp, student_logp)  # the mixture would lose p beside q, in whose units it is computed
    gap = _finite(student_logp) - _finite(teacher_logp)
    return -(teacher_logp.exp() * _log_mixture(gap, 1 - alpha)).sum(-1)


def skew_reverse_kl(teacher_logp: Tensor, student_logp: Tensor, alpha: float = 0.1) -> Tensor:
    """``KL(p || (1 - alpha) q + alpha p)``: reverse KL whose gradient is bounded (DistiLLM, arXiv 2402.03898)."""
    return skew_kl(student_logp, teacher_logp, alpha)


def adaptive_kl(teacher_logp: Tensor, student_logp: Tensor, alpha: float = 0.5) -> Tensor:
    """Mix of forward and reverse KL by where the two differ (AKL, arXiv 2404.02657, section 4).

    The head is the fewest of the teacher's most probable tokens that hold a mass of ``alpha`` at least, the tail all
    others. Forward KL is weighted by the head's share of ``sum |q - p|``, reverse KL by the tail's. The weights carry
    no gradient, as in the authors' code, so the gradient is not that of the value.
    """
    with torch.no_grad():
        teacher, order = teacher_logp.exp().sort(-1, descending=True)
        gaps = (teacher - student_logp.exp().gather(-1, order)).abs()
        head_gap = (gaps * (teacher.cumsum(-1) - teacher < alpha)).sum(-1)
        total_gap = gaps.sum(-1)
        # Without any gap both divergences are 0, so any weight will do.
        head = head_gap / total_gap.masked_fill(total_gap == 0, 1)
    return head * kl(teacher_logp, student_logp) + (1 - head) * reverse_kl(teacher_logp, student_logp)


DISTRIBUTION_DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "jeffreys": jeffreys,
    "jsd": jsd,
    "tvd": tvd,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "adaptive_kl": adaptive_kl,
}
"""Name -> (teacher_logp, student_logp) -> value a row; ``row_divergence`` sets the parameter that some have."""


def row_divergence(name: str, *, beta: float | None = None, alpha: float | None = None) -> RowDivergence:
    """The divergence called ``name``; a parameter that is None keeps its default.

    Raises:
        ValueError: the divergence has no such parameter.
    """
    function = DISTRIBUTION_DIVERGENCES[name]
    given = {key: value for key, value in (("beta", beta), ("alpha", alpha)) if value is not None}
    if unknown := given.keys() - inspect.signature(function).parameters:
        raise ValueError(f"the divergence {name} has no parameter {' or '.join(sorted(unknown))}")
    return partial(function, **given)


def tempered(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [..., V] of ``softmax(logits / temperature)``; logits may be log-probabilities."""
    return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)


def with_tail(teacher_logp: Tensor, student_logp: Tensor) -> tuple[Tensor, Tensor]:
    """Both distributions over the tokens that a truncated teacher knows, and one more cell for all the others.

    Args:
        teacher_logp: [b, V], -inf for tokens that are not among the known ones; their mass may be below 1.
        student_logp: [b, V], the whole distribution; differentiable.

    Returns:
        Teacher and student [b, V + 1]: known tokens at their ids, -inf on both sides at the others' ids, and last the
        mass outside the known tokens.
    """
    unknown = teacher_logp == -torch.inf
    known_mass = teacher_logp.exp().sum(-1, keepdim=True, dtype=torch.float64).clamp(max=1)
    teacher_tail = torch.log1p(-known_mass).to(teacher_logp.dtype)
    # Summed over what is outside rather than 1 minus what is inside, which would leave rounding noise of a small tail.
    student_tail = student_logp.masked_fill(~unknown, _NO_MASS).logsumexp(-1, keepdim=True)
    student_tail = student_tail.masked_fill(~unknown.any(-1, keepdim=True), -torch.inf)
    known_student = student_logp.masked_fill(unknown, -torch.inf)
    return torch.cat([teacher_logp, teacher_tail], -1), torch.cat([known_student, student_tail], -1)


def same_vocabulary_loss(
    teacher: Predictions,
    student: LinearHead,
    *,
    divergence: RowDivergence = kl,
    temperature: float = 1.0,
    scale_by_temperature: bool = False,
) -> LossOutput:
    """Divergence of two models' next-token distributions over one vocabulary, at N positions of one text.

    Args:
        teacher: N distributions; a truncated one is compared on its known tokens and one cell for all the others, which
            ``temperature`` softens like any other.
        student: of N rows.
        temperature: both distributions are ``softmax(logits / temperature)``.
        scale_by_temperature: multiply by ``temperature ** 2``, which keeps the size of forward KL's gradient (Hinton et
            al., arXiv 1503.02531, section 2).

    Returns:
        Unit: position. At temperature 1 forward KL is the ordinary one, bit for bit, but for the order of the sum.

    Raises:
        ValueError: the vocabularies differ in size.
    """
    if teacher.vocab_size != student.vocab_size:
        raise ValueError(
            f"the teacher has {teacher.vocab_size} tokens and the student {student.vocab_size}, not one set"
        )
    factor = temperature**2 if scale_by_temperature else 1.0

    def losses_of(rows: slice, logits: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        teacher_logp, student_logp = teacher.log_probs(rows), logits[0].log_softmax(-1)
        if not teacher.complete:
            teacher_logp, student_logp = with_tail(teacher_logp, student_logp)
        if temperature != 1.0:
            teacher_logp, student_logp = tempered(teacher_logp, temperature), tempered(student_logp, temperature)
        return factor * divergence(teacher_logp, student_logp), {}

    total, metrics = rowwise_loss(losses_of, [student])
    return LossOutput(total, torch.tensor(len(student), device=total.device), metrics)


def _finite(logp: Tensor) -> Tensor:
    return logp.masked_fill(logp == -torch.inf, _LOG_OF_ZERO)


def _log_mixture(gap: Tensor, weight: float) -> Tensor:
    """``log(((1 - weight) x + weight y) / x)`` from ``gap = log(y / x)``: exact for x = y, without overflow."""
    smaller = torch.log1p(weight * torch.expm1(gap.clamp(max=0)))
    larger = torch.log1p((1 - weight) * torch.expm1(-gap.clamp(min=0))) + gap
    return torch.where(gap <= 0, smaller, larger)
