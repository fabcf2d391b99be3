"""X-Token: the student's distribution projected onto the teacher's vocabulary (arXiv 2605.21699).

Teacher signal: next-token distributions; their most probable tokens are enough for P-KL. One unit is one chunk: the
text between two byte boundaries that both tokenizers have. Both models are compared where they predict its first token,
after exactly the same bytes. With q the teacher's distribution there, p the student's and W the projection [V_S, V_T]:

    P-KL:  KL(q || W^T p)
    H-KL:  m KL over the common tokens  +  (1 - m) L1 distance of the sorted probabilities of all others

The chain rule for a chunk of several tokens splits its first token's mass in two: the text's own chunk, of probability
prod_i q_i, and every other continuation of that token. The chunk is a cell of its own on both sides, and what is left
stays with the first token. A chunk of one token is a cell as it is.

What differs from the paper and its released code, on purpose:
* both sides are distributions: what cannot be compared (teacher tokens that W does not reach, student tokens that it
  does not carry) is left out of both and reported, and the teacher's tokens beyond the ``top_k`` are one cell. The loss
  is at least 0 and is 0 at equality; the released one averages log-probabilities over a chunk and is not;
* the ``top_k`` are those of the row, whatever else is in the batch;
* the common tokens of H-KL are cells too, with one more for all others, so that they do not push the others down;
  student tokens whose rows of W lead to one teacher token with 0.6 or more share its cell.
The paper adds cross-entropy and scales by sg(CE / KD); here losses are combined by their weights.

Legend: N chunks, E entries of W, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from losses.cells import cell_kl, pooled
from losses.output import LossOutput
from losses.predictions import LinearHead, Predictions
from losses.rowwise import rowwise_loss

COMMON_WEIGHT = 0.6
"""Smallest largest weight of a row of W whose student token counts as common in H-KL."""


class ChunkTokens(NamedTuple):
    """What the text has at the N compared positions.

    Attributes:
        teacher_first, student_first: int64 [N], the chunk's first token.
        teacher_rest, student_rest: [N], log-probability of the chunk's other tokens after the first; 0 for one token.
            The student's carries its gradient.
    """

    teacher_first: Tensor
    student_first: Tensor
    teacher_rest: Tensor
    student_rest: Tensor


@dataclass(frozen=True)
class ProjectionEntries:
    """W as tensors; see ``alignment.projection``.

    Attributes:
        student, teacher: int64 [E], by ascending student id, then descending weight.
        weight: float32 [E].
    """

    student: Tensor
    teacher: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Self:
        """The entries on a device."""
        return type(self)(self.student.to(device), self.teacher.to(device), self.weight.to(device))

    def leading(self) -> Self:
        """The first entry of each row that is at least COMMON_WEIGHT, as if it were 1."""
        first = torch.ones_like(self.student, dtype=torch.bool)
        first[1:] = self.student[1:] != self.student[:-1]
        kept = first & (self.weight >= COMMON_WEIGHT)
        return type(self)(self.student[kept], self.teacher[kept], torch.ones_like(self.weight[kept]))


def projected_kl_loss(
    teacher: Predictions,
    student: LinearHead,
    projection: ProjectionEntries,
    chunks: ChunkTokens,
    *,
    top_k: int,
) -> LossOutput:
    """P-KL of N aligned positions: KL from the teacher to the projected student.

    Args:
        teacher, student: of N rows each; the teacher may know its most probable tokens only.
        top_k: teacher tokens of a row that are cells of their own; the others are one cell.

    Returns:
        In nats, a unit a row. Metric ``reached``: the teacher's known mass on tokens that W reaches.
    """
    size = teacher.vocab_size
    reached = torch.zeros(size, dtype=torch.bool, device=student.hidden.device)
    reached[projection.teacher] = True

    def losses_of(rows: slice, logits: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        split = _split(teacher.log_probs(rows).exp(), logits[0].softmax(-1), _at(chunks, rows, inputs[0]))
        carried = split.student.index_select(1, projection.student) * projection.weight
        projected = pooled(carried, projection.teacher, size)
        known = split.teacher * reached
        top = known.topk(min(top_k, size), dim=1, sorted=False)
        unknown = 0.0 if teacher.complete else (1 - split.teacher.sum(1) - split.teacher_chunk).clamp(min=0)
        # Tokens that a truncated teacher does not know are among the others, wherever they come in its order.
        own_cell = top.values > 0
        there = projected.gather(1, top.indices)
        others = projected.scatter(1, top.indices, there * ~own_cell).sum(1)
        loss = cell_kl(
            _cells(top.values, split.teacher_chunk, known.scatter(1, top.indices, 0.0).sum(1) + unknown),
            _cells(there * own_cell, split.student_chunk, others),
        )
        mass = split.teacher.sum() + split.teacher_chunk.sum()
        return loss, {"reached": torch.stack([known.sum() + split.teacher_chunk.sum(), mass])}

    result = rowwise_loss(losses_of, [student], [chunks.student_rest])
    return LossOutput(result.total, _count(student), result.metrics)


def hybrid_loss(
    teacher: Predictions,
    student: LinearHead,
    projection: ProjectionEntries,
    chunks: ChunkTokens,
    *,
    top_k: int,
) -> LossOutput:
    """H-KL of N aligned positions: KL over the common tokens, and the sorted probabilities of all others.

    The parts are weighted by the share m of the teacher's tokens that are common, as in GOLD.

    Args:
        teacher, student: of N rows each; the teacher's distributions must be complete.
        top_k: uncommon tokens of either side that are compared, the most probable ones.

    Returns:
        A unit a row. Metric ``common``: the teacher's mass on common tokens.

    Raises:
        ValueError: the teacher's distributions are not complete.
    """
    if not teacher.complete:
        raise ValueError("H-KL sorts the teacher's whole distribution; its most probable tokens are not enough")
    pairs = projection.leading()
    common = torch.zeros(teacher.vocab_size, dtype=torch.bool, device=student.hidden.device)
    common[pairs.teacher] = True
    paired = torch.zeros(student.vocab_size, dtype=torch.bool, device=student.hidden.device)
    paired[pairs.student] = True
    cells, others, own_others = (each.nonzero().squeeze(1) for each in (common, ~common, ~paired))
    share = len(cells) / teacher.vocab_size

    def losses_of(rows: slice, logits: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        split = _split(teacher.log_probs(rows).exp(), logits[0].softmax(-1), _at(chunks, rows, inputs[0]))
        grouped = pooled(split.student.index_select(1, pairs.student), pairs.teacher, teacher.vocab_size)
        teacher_others = split.teacher.index_select(1, others)
        student_others = split.student.index_select(1, own_others)
        # A student all of whose tokens are common has none to put the teacher's other mass on.
        comparable = teacher_others.sum(1) * (len(own_others) > 0)
        divergence = cell_kl(
            _cells(split.teacher.index_select(1, cells), split.teacher_chunk, comparable),
            _cells(grouped.index_select(1, cells), split.student_chunk, student_others.sum(1)),
        )
        distance = _sorted_distance(teacher_others, student_others, top_k)
        mass = split.teacher.sum() + split.teacher_chunk.sum()
        metrics = {"common": torch.stack([mass - teacher_others.sum(), mass])}
        return share * divergence + (1 - share) * distance, metrics

    result = rowwise_loss(losses_of, [student], [chunks.student_rest])
    return LossOutput(result.total, _count(student), result.metrics)


class _Split(NamedTuple):
    """Distributions [b, V] without the text's own chunk, and its probability [b]."""

    teacher: Tensor
    student: Tensor
    teacher_chunk: Tensor
    student_chunk: Tensor


def _at(chunks: ChunkTokens, rows: slice, student_rest: Tensor) -> ChunkTokens:
    return ChunkTokens(chunks.teacher_first[rows], chunks.student_first[rows], chunks.teacher_rest[rows], student_rest)


def _split(teacher: Tensor, student: Tensor, chunks: ChunkTokens) -> _Split:
    """Take the text's own chunk out of its first token's mass, where the teacher knows that mass."""
    own_known = teacher.gather(1, chunks.teacher_first[:, None]).squeeze(1) > 0
    parts = []
    for mass, first, rest in (
        (teacher, chunks.teacher_first, chunks.teacher_rest),
        (student, chunks.student_first, chunks.student_rest),
    ):
        rest = torch.where(own_known, rest.to(mass.dtype).clamp(max=0), -torch.inf)[:, None]
        own = mass.gather(1, first[:, None])
        parts.append((mass.scatter(1, first[:, None], own * -torch.expm1(rest)), (own * rest.exp()).squeeze(1)))
    (teacher, teacher_chunk), (student, student_chunk) = parts
    return _Split(teacher, student, teacher_chunk, student_chunk)


def _cells(tokens: Tensor, chunk: Tensor, others: Tensor) -> Tensor:
    return torch.cat([tokens, chunk[:, None], others[:, None]], dim=1)


def _sorted_distance(teacher: Tensor, student: Tensor, top_k: int) -> Tensor:
    """L1 distance [b] of the ``top_k`` largest masses of either side, in order; the shorter side ends in zeros."""
    columns = min(top_k, max(teacher.shape[1], student.shape[1]))
    ordered = []
    for mass in (teacher, student):
        largest = mass.topk(min(columns, mass.shape[1]), dim=1).values
        ordered.append(torch.nn.functional.pad(largest, (0, columns - largest.shape[1])))
    return (ordered[0] - ordered[1]).abs().sum(1)


def _count(head: LinearHead) -> Tensor:
    return torch.tensor(len(head), device=head.hidden.device)
