"""A teacher's next-token distribution as one of the student's next token, byte by byte and with no mass lost.

Every unit of the teacher's mass is in exactly one place: on a student token, on the residual (teacher tokens that no
student token is a prefix of), on special tokens that the student has none for, or uncovered (outside the teacher's top
tokens). ``distillation_losses.md`` 1.13; arXiv 2607.22334.

Legend: b rows, V_T and V_S vocabularies, P pairs of a row and a teacher token.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from losses.output import ratio
from losses.prefix_tables import NO_LOGIT, PrefixTables
from losses.ranges import expand_ranges, segment_max, segment_sum

MASSES = ("residual", "special", "uncovered", "mass")
"""Names of ``mass_metrics``."""


class ByteTargets(NamedTuple):
    """Targets of b rows.

    Attributes:
        columns: [b, V_S + 2] mass on each student token, then the residual, then the special mass.
        uncovered: [b] mass that the teacher does not tell the place of.
        log_support: [b] log of the teacher's mass that the target is conditional on: 0 at a boundary of both
            tokenizations; -inf where there is no target, and then all masses are 0.
    """

    columns: Tensor
    uncovered: Tensor
    log_support: Tensor

    @property
    def cells(self) -> Tensor:
        """[b, V_S]: mass on each student token."""
        return self.columns[:, :-2]

    @property
    def residual(self) -> Tensor:
        """[b]: mass of teacher tokens that no student token is a prefix of, or that end here."""
        return self.columns[:, -2]

    @property
    def special(self) -> Tensor:
        """[b]: mass of tokens without bytes."""
        return self.columns[:, -1]

    @property
    def complement(self) -> Tensor:
        """[b]: mass on no student token."""
        return self.residual + self.special + self.uncovered


class Moves(NamedTuple):
    """Mass to be moved between cells of some rows, in units of the teacher's unconditional mass.

    Attributes:
        row: int64 [P], ascending.
        column: int64 [P], of ``ByteTargets.columns``.
        log_gain, log_loss: [P] logs of what the cell gets and of what it gives.
    """

    row: Tensor
    column: Tensor
    log_gain: Tensor
    log_loss: Tensor

    def within(self, rows: slice) -> Self:
        """The moves of a block of rows, with rows counted from its start."""
        first, last = torch.searchsorted(self.row, self.row.new_tensor([rows.start, rows.stop])).tolist()
        row, *others = (field[first:last] for field in self)
        return type(self)(row - rows.start, *others)


def root_targets(logp: Tensor, tables: PrefixTables, *, complete: bool) -> ByteTargets:
    """Targets where both tokenizations have a boundary: each teacher token counts for its longest student prefix.

    Args:
        logp: [b, V_T] the teacher's log-probabilities, -inf where unknown.
        complete: whether nothing is unknown.
    """
    mass = logp.exp()
    columns = mass.new_zeros(len(mass), tables.special + 1).index_add_(1, tables.root_column, mass)
    return ByteTargets(columns, _uncovered(mass, complete), mass.new_zeros(len(mass)))


def interior_targets(
    logp: Tensor, token: Tensor, offset: Tensor, limit: Tensor, tables: PrefixTables, *, complete: bool
) -> ByteTargets:
    """Targets inside a teacher token: of the tokens that begin with its first bytes, what comes after these.

    Args:
        logp: [b, V_T] the teacher's log-probabilities at the token, -inf where unknown.
        token: int64 [b], the teacher's token.
        offset: int64 [b], number of its bytes that the student has already written.
        limit: int64 [b], most bytes of a student token.
        complete: whether nothing is unknown.
    """
    nodes = tables.entry_prefix[tables.teacher_entry[token] + offset]
    row, place = expand_ranges(tables.teacher_start[nodes], tables.teacher_end[nodes])
    extending = tables.teacher_order[place]
    piece = _shortened(tables.entry_piece[tables.teacher_entry[extending] + offset[row]], limit[row], tables)
    column = torch.where(piece < 0, tables.residual, piece)

    # Relative to the row's largest, so that the mass of an improbable prefix does not vanish.
    pair_logp = logp[row, extending]
    log_uncovered = _uncovered(logp.exp(), complete).log()
    scale = torch.maximum(segment_max(pair_logp, row, len(logp)), log_uncovered)
    scale = scale.masked_fill(scale == -torch.inf, 0)
    mass, uncovered = (pair_logp - scale[row]).exp(), (log_uncovered - scale).exp()
    support = segment_sum(mass, row, len(logp)) + uncovered
    supported = support.clamp(min=torch.finfo(support.dtype).tiny)
    columns = logp.new_zeros(len(logp), tables.special + 1)
    columns.view(-1).index_add_(0, row * columns.shape[1] + column, mass / supported[row])
    return ByteTargets(columns, uncovered / supported, support.log() + scale)


def moved(targets: ByteTargets, moves: Moves) -> ByteTargets:
    """The targets after ``moves`` within their rows.

    A cell that gives or gets all but nothing keeps the smallest positive mass: it is known to be empty, which is not
    the same as to have no target.
    """
    if not len(moves.row):
        return targets
    # Without support nothing is gained or lost either, but -inf less -inf is no number.
    log_support = targets.log_support.masked_fill(targets.log_support == -torch.inf, 0)[moves.row]
    gain = (moves.log_gain - log_support).exp() - (moves.log_loss - log_support).exp()
    columns = targets.columns.clone()
    cells, touched = columns.view(-1), moves.row * columns.shape[1] + moves.column
    known = (cells[touched] > 0) | (moves.log_gain > -torch.inf)
    cells.index_add_(0, touched, gain.to(columns.dtype))
    smallest = known.to(columns.dtype) * torch.finfo(columns.dtype).tiny
    cells[touched] = torch.maximum(cells[touched], smallest)
    return targets._replace(columns=columns)


def target_divergence(targets: ByteTargets, cell_logits: Tensor) -> Tensor:
    """KL(target || student) in nats over the student tokens with a target, and one cell for everything else: [b].

    That cell holds the target's residual, special and uncovered mass, and the student's mass on all other tokens. Where
    the student has no other token, the target is conditional on what it can write.

    Args:
        cell_logits: [b, V_S] the student's logits (``PrefixTables.cell_logits``); differentiable.
    """
    cells, complement = targets.cells.to(cell_logits.dtype), targets.complement.to(cell_logits.dtype)
    normaliser = cell_logits.logsumexp(-1)
    written = cells.sum(-1)
    inside = _negative_entropy(cells).sum(-1) - (cells * cell_logits).sum(-1) + written * normaliser
    elsewhere = cell_logits.masked_fill(cells > 0, -torch.inf).logsumexp(-1)
    nowhere = elsewhere <= NO_LOGIT
    outside = _negative_entropy(complement) + complement * (normaliser - elsewhere.masked_fill(nowhere, 0))
    written = written.clamp(min=torch.finfo(written.dtype).tiny)
    return torch.where(nowhere, inside / written - written.log(), inside + outside)


def mass_metrics(targets: ByteTargets) -> dict[str, Tensor]:
    """Mean masses of the rows with a target: on no student token, by reason; ``mass``, of everything, must be 1."""
    rows = (targets.log_support > -torch.inf).sum()
    mass = targets.columns.sum() + targets.uncovered.sum()
    sums = (targets.residual.sum(), targets.special.sum(), targets.uncovered.sum(), mass)
    return {name: ratio(total, rows) for name, total in zip(MASSES, sums, strict=True)}


def _negative_entropy(mass: Tensor) -> Tensor:
    """``mass * log(mass)``, 0 at 0; several times as fast as ``xlogy``, which is not vectorised on CPUs."""
    return mass * mass.clamp(min=torch.finfo(mass.dtype).tiny).log()


def _uncovered(mass: Tensor, complete: bool) -> Tensor:
    return mass.new_zeros(len(mass)) if complete else (1 - mass.sum(-1)).clamp(min=0)


def _shortened(piece: Tensor, limit: Tensor, tables: PrefixTables) -> Tensor:
    """The longest student token of at most ``limit`` bytes that begins each of ``piece``; -1 for none."""
    while True:
        too_long = (piece >= 0) & (tables.student_length[piece.clamp(min=0)] > limit)
        if not too_long.any():
            return piece
        piece = torch.where(too_long, tables.student_shorter[piece.clamp(min=0)], piece)
