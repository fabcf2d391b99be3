"""MinED: every student token takes the probability of the teacher token spelled most like it.

From FuseLLM (arXiv 2401.10491), as token-wise distillation baselines use it (tokenkit, DSKD): with m(v) the teacher
token at the least edit distance from the student token v, found once (``alignment.nearest_tokens``),

    KL( softmax_v( log q(m(v)) / tau )  ||  softmax_v( z(v) / tau ) )

Teacher signal: next-token distributions; their most probable tokens are enough. One unit is one chunk of one token on
either side, and the positions compared are those that predict it, after exactly the same bytes. A teacher token that is
the nearest of several student tokens gives its probability to each of them, before all are made to add up to 1: the
method's own weakness, and the reason why it is a baseline.

What differs from the released code, on purpose: positions are aligned by exact bytes, not by the edit distance of
token strings; special tokens without a counterpart are left out of both sides; positions of other chunks have no part,
where tokenkit adds the cross-entropy of the text (list ``cross_entropy`` too); only positions that exist are counted.
The result is not multiplied by the temperature's square.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from losses.cells import cell_kl
from losses.output import LossOutput
from losses.predictions import LinearHead, Predictions
from losses.rowwise import rowwise_loss


def mined_loss(teacher: Predictions, student: LinearHead, nearest: Tensor, *, temperature: float = 2.0) -> LossOutput:
    """Sum of the divergences of N aligned positions.

    Args:
        teacher, student: of N rows each.
        nearest: int64 [V_student], the teacher's token for every student token; -1 for none.
        temperature: log-probabilities of both sides are divided by it.

    Returns:
        In nats, a unit a row. Metric ``mapped``: the teacher's known mass on tokens that are some student token's.
    """
    has_nearest = nearest >= 0
    image = torch.zeros(teacher.vocab_size, dtype=torch.bool, device=nearest.device)
    image[nearest[has_nearest]] = True

    def losses_of(rows: slice, logits: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logp = teacher.log_probs(rows)
        target = (logp / temperature).exp().index_select(1, nearest.clamp(min=0)) * has_nearest
        loss = cell_kl(target, (logits[0] / temperature).softmax(-1) * has_nearest)
        known = logp.exp()
        return loss, {"mapped": torch.stack([(known * image).sum(), known.sum()])}

    result = rowwise_loss(losses_of, [student])
    return LossOutput(result.total, torch.tensor(len(student), device=nearest.device), result.metrics)
