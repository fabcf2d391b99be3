"""Byte-prefix marginalisation: the teacher's distribution wherever a student token begins, with no mass lost.

Legend: N student tokens (``losses.byte_rows``), b rows of a block, V_T and V_S vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from losses.byte_rows import ByteRows, TeacherLine
from losses.byte_targets import MASSES, interior_targets, mass_metrics, moved, root_targets, target_divergence
from losses.output import LossOutput, ratio
from losses.predictions import LinearHead, Predictions
from losses.prefix_tables import PrefixTables
from losses.rowwise import RowwiseLoss, rowwise_loss
from losses.spanning import spanning_moves


def rows_with_target(rows: ByteRows, tables: PrefixTables, *, whitespace_rows: bool) -> Tensor:
    """Which rows BPM compares: bool [N]; without ``whitespace_rows`` no student tokens of spaces and tabs alone."""
    return rows.has_target & (whitespace_rows | ~tables.student_blank[rows.student_id])


def bpm_loss(
    teacher: Predictions,
    student: LinearHead,
    rows: ByteRows,
    line: TeacherLine,
    tables: PrefixTables,
    *,
    scored: Tensor,
    whitespace_rows: bool = False,
) -> LossOutput:
    """KL(target || student) in nats at every row with a target (arXiv 2607.22334; ``distillation_losses.md`` 1.13).

    The target is exact, but for student tokens that run past the end of the teacher's token (``losses.spanning``). With
    one tokenizer on both sides it is the teacher's own distribution, with its stops and its other special tokens added
    up.

    Unlike the paper, tokens with the same bytes are one event, as are the stops of one side. A row whose prefix is
    outside the teacher's top tokens has no target to tell from the student's and adds 0.

    Args:
        teacher: its predictions at all B * T positions, whole or the most probable tokens.
        student: its head at all B * T positions.
        rows: the student's tokens of the batch.
        line: the teacher's.
        scored: bool [B, T], the student's scored tokens, for the metrics.
        whitespace_rows: compare also at student tokens of spaces and tabs alone. Their exact targets taught models to
            write wrong indents.

    Returns:
        A unit is a row of ``rows_with_target``. Metrics: ``token_coverage``, ``withheld`` (white space) and
        ``excluded`` share the scored tokens out; ``exact`` of the rows is not a lower bound; ``residual``, ``special``
        and ``uncovered`` are the mean masses on no student token; ``mass`` is 1 if none is lost.
    """
    kept = rows_with_target(rows, tables, whitespace_rows=whitespace_rows)
    parts = [
        _compare(teacher, student, rows.at(kept & at_root), line, tables, root=root)
        for root, at_root in ((True, rows.root), (False, ~rows.root))
    ]
    count, blank = kept.sum(), (rows.has_target & ~kept).sum()
    tokens, nothing = scored.sum(), torch.zeros(2, device=scored.device)
    metrics = {name: sum(part.metrics.get(name, nothing) for part in parts) for name in MASSES}
    metrics |= {
        "exact": ratio((kept & ~rows.spanning).sum(), count),
        "token_coverage": ratio(count, tokens),
        "withheld": ratio(blank, tokens),
        "excluded": ratio(tokens - count - blank, tokens),
    }
    return LossOutput(parts[0].total + parts[1].total, count, metrics)


def _compare(
    teacher: Predictions, student: LinearHead, rows: ByteRows, line: TeacherLine, tables: PrefixTables, *, root: bool
) -> RowwiseLoss:
    """The loss of rows that are all at the start of a teacher token, or all inside one."""
    moves = spanning_moves(rows, line, teacher, tables)
    predictions = teacher.at(rows.teacher - 1)

    def losses_of(block: slice, logits: Sequence[Tensor], _: Sequence[Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        logp = predictions.log_probs(block)
        if root:
            targets = root_targets(logp, tables, complete=teacher.complete)
        else:
            token, offset, limit = rows.teacher_id[block], rows.offset[block], rows.remaining[block]
            targets = interior_targets(logp, token, offset, limit, tables, complete=teacher.complete)
        targets = moved(targets, moves.within(block))
        return target_divergence(targets, tables.cell_logits(logits[0])), mass_metrics(targets)

    return rowwise_loss(losses_of, [student.at(rows.student - 1)])
