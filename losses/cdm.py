"""Contextual dynamic mapping: top tokens of both models matched at every position (CDM, arXiv 2502.11104, section 3).

Tokens with equal bytes are each other's counterpart. One without a counterpart is matched with a token spelled alike
only if that is itself among the other model's ``top_k`` at the same position: the context decides between near
spellings. Both directions are compared:

    1/2 KL over the student tokens that the teacher's top_k lead to
    + 1/2 KL over the teacher tokens that the student's top_k lead to

each with both distributions restricted to those tokens and made to add up to 1. Teacher signal: the most probable
tokens. One unit is one position of both models after the same bytes, before a chunk that both have.

What differs from the paper and its released code, on purpose: byte alignment is exact and takes the place of the
dynamic programme over token strings with entropy-weighted costs (the only place where entropies enter), so no rows of a
misaligned stretch are averaged; spelling is compared in bytes, white space included; a token that several lead to is
one cell with all their mass, where the code repeats it; a token with a counterpart is nobody else's match; the
candidates of a token are the nearest few of the whole vocabulary, found once
(``alignment.nearest_tokens.similar_tokens``); both sides have one temperature.

Legend: N positions, b rows of a block, K top tokens, L candidates of a token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from losses.cells import cell_kl, pooled
from losses.output import LossOutput
from losses.predictions import LinearHead, Predictions
from losses.rowwise import rowwise_loss


@dataclass(frozen=True)
class TokenMatches:
    """Where the tokens of one vocabulary may lie in the other.

    Attributes:
        counterpart: int64 [V], the other vocabulary's token with the same bytes or role; -1 for none.
        similar: int64 [V, L], tokens spelled alike, nearest first, -1 at the end; none for a token with a counterpart.
    """

    counterpart: Tensor
    similar: Tensor

    def to(self, device: torch.device) -> Self:
        """The tables on a device."""
        return type(self)(self.counterpart.to(device), self.similar.to(device))


def match_in_context(tokens: Tensor, other_top: Tensor, matches: TokenMatches, other_size: int) -> Tensor:
    """The other vocabulary's token for each of a model's top tokens: int64 [b, K], -1 for none.

    Args:
        tokens: int64 [b, K], the model's top tokens.
        other_top: int64 [b, K'], the other model's top tokens at the same positions.
        other_size: size of the other vocabulary.
    """
    is_top = torch.zeros(len(tokens), other_size, dtype=torch.bool, device=tokens.device).scatter_(1, other_top, True)
    candidates = matches.similar[tokens]
    fits = is_top.gather(1, candidates.clamp(min=0).flatten(1)).view(candidates.shape) & (candidates >= 0)
    first = fits.to(torch.uint8).argmax(-1, keepdim=True)
    similar = candidates.gather(-1, first).masked_fill(~fits.gather(-1, first), -1).squeeze(-1)
    counterpart = matches.counterpart[tokens]
    return torch.where(counterpart >= 0, counterpart, similar)


def cdm_loss(
    teacher: Predictions,
    student: LinearHead,
    teacher_matches: TokenMatches,
    student_matches: TokenMatches,
    *,
    top_k: int = 100,
    temperature: float = 1.0,
) -> LossOutput:
    """Sum of the divergences of N aligned positions.

    Args:
        teacher, student: of N rows each.
        teacher_matches: where the teacher's tokens may lie in the student's vocabulary.
        student_matches: where the student's tokens may lie in the teacher's vocabulary.
        top_k: tokens of either model that are matched.
        temperature: log-probabilities of both sides are divided by it.

    Returns:
        In nats, a unit a row. Metrics ``teacher_matched`` and ``student_matched``: the share of the mass of a model's
        top tokens that is on matched ones.
    """

    def losses_of(rows: slice, logits: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        target = (teacher.log_probs(rows) / temperature).exp()
        mass = (logits[0] / temperature).softmax(-1)
        # Unknown tokens of a truncated teacher are no top tokens: their mass of 0 takes them out of every cell.
        teacher_top = target.topk(min(top_k, teacher.vocab_size), dim=1)
        student_top = mass.detach().topk(min(top_k, student.vocab_size), dim=1)
        in_student = match_in_context(teacher_top.indices, student_top.indices, teacher_matches, student.vocab_size)
        in_teacher = match_in_context(student_top.indices, teacher_top.indices, student_matches, teacher.vocab_size)

        led_to = _pooled_by_token(teacher_top.values, in_student, student.vocab_size)
        forward = cell_kl(led_to, mass.gather(1, in_student.clamp(min=0)) * (led_to > 0))
        own = _pooled_by_token(mass.gather(1, student_top.indices), in_teacher, teacher.vocab_size)
        theirs = target.gather(1, in_teacher.clamp(min=0)) * (own.detach() > 0)
        backward = cell_kl(theirs, own * (theirs > 0))
        return (forward + backward) / 2, {
            "teacher_matched": _share(teacher_top.values, in_student),
            "student_matched": _share(student_top.values, in_teacher),
        }

    result = rowwise_loss(losses_of, [student])
    return LossOutput(result.total, torch.tensor(len(student), device=student.hidden.device), result.metrics)


def _pooled_by_token(masses: Tensor, tokens: Tensor, size: int) -> Tensor:
    """The masses [b, K] added up over those that lead to one token, at the first of these; 0 everywhere else."""
    leads = tokens >= 0
    places = tokens.clamp(min=0)
    order = torch.arange(tokens.shape[1], dtype=torch.int32, device=tokens.device).expand(tokens.shape)
    first = torch.full((len(tokens), size), tokens.shape[1], dtype=torch.int32, device=tokens.device)
    first.scatter_reduce_(1, places, torch.where(leads, order, tokens.shape[1]).int(), "amin")
    return pooled(masses * leads, places, size).gather(1, places) * (first.gather(1, places) == order)


def _share(masses: Tensor, tokens: Tensor) -> Tensor:
    return torch.stack([(masses * (tokens >= 0)).sum(), masses.sum()])
