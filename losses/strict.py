"""Strict 1:1: distributions on the shared vocabulary, only where both tokenizers cut the text alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from losses.output import LossOutput
from losses.predictions import LinearHead, Predictions
from losses.rowwise import rowwise_loss
from losses.same_vocab import RowDivergence, reverse_kl, tempered


def strict_loss(
    teacher: Predictions,
    student: LinearHead,
    teacher_ids: Tensor,
    student_ids: Tensor,
    *,
    divergence: RowDivergence = reverse_kl,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> LossOutput:
    """Divergence of two distributions on the tokens that both vocabularies have, each renormalised there.

    Arxiv 2610.08448 ("Rethinking Cross-Tokenizer OPD"), known to us from a review: on-policy there, on given text here.
    Where there is one vocabulary and all of it is shared, this is ``same_vocabulary_loss``.

    Args:
        teacher: N whole distributions, at the positions that predict chunks of one token on either side
            (``losses.chunks.aligned_rows``, ``one_to_one``). A truncated one says nothing about most of what the
            student may wrongly expect, which is what reverse KL is there to see.
        student: of N rows, at the same places of the text.
        teacher_ids, student_ids: int64 [M], the ids of the M shared tokens in either vocabulary.
        divergence: of the renormalised distributions.
        temperature: both are ``softmax(logits / temperature)`` on the shared tokens.
        top_k: compare only the shared tokens that the student finds most probable, at least 2; None for all.

    Returns:
        Unit: position. Metric ``teacher_shared_mass``: the teacher's mass on the M shared tokens, a mean over
        positions.

    Raises:
        ValueError: ``top_k`` is below 2, there are fewer than 2 shared tokens, or the teacher is truncated.
    """
    if not teacher.complete:
        raise ValueError("strict_loss needs the teacher's whole distribution, not its most probable tokens alone")
    if len(teacher_ids) != len(student_ids) or len(student_ids) < 2:
        raise ValueError(
            f"expected at least 2 pairs of shared tokens, got {len(teacher_ids)} ids of the teacher and "
            f"{len(student_ids)} of the student"
        )
    if top_k is not None and top_k < 2:
        raise ValueError(f"top_k is {top_k}; renormalised on fewer than 2 tokens every distribution is the same")

    def losses_of(rows: slice, logits: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        teacher_logp = teacher.log_probs(rows).index_select(1, teacher_ids)
        student_logits = logits[0].index_select(1, student_ids)
        mass = torch.stack([teacher_logp.exp().sum(), teacher_logp.new_tensor(len(teacher_logp))])
        if top_k is not None and top_k < len(student_ids):
            chosen = student_logits.detach().topk(top_k, dim=1).indices
            teacher_logp, student_logits = teacher_logp.gather(1, chosen), student_logits.gather(1, chosen)
        values = divergence(tempered(teacher_logp, temperature), tempered(student_logits, temperature))
        return values, {"teacher_shared_mass": mass}

    total, metrics = rowwise_loss(losses_of, [student])
    return LossOutput(total, torch.tensor(len(student), device=total.device), metrics)
