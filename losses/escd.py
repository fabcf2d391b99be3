"""Event-set completion: the teacher's tokens where they begin, and their completion once the student has begun them.

Legend: N student tokens (``losses.byte_rows``), b rows of a block, G groups of teacher tokens, V_T and V_S
vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from losses.byte_rows import ByteRows
from losses.byte_targets import MASSES, mass_metrics, root_targets, target_divergence
from losses.output import LossOutput, ratio
from losses.predictions import LinearHead, Predictions
from losses.prefix_tables import PrefixTables
from losses.ranges import expand_ranges, segment_logsumexp, segment_sum
from losses.rowwise import RowwiseLoss, rowwise_loss


def root_rows(rows: ByteRows, tables: PrefixTables, *, whitespace_rows: bool) -> Tensor:
    """Which rows ESCD compares: bool [N], those where both tokenizations have a boundary.

    Without ``whitespace_rows``, no student tokens of spaces and tabs alone.
    """
    return rows.root & (whitespace_rows | ~tables.student_blank[rows.student_id])


def escd_loss(
    teacher: Predictions,
    student: LinearHead,
    rows: ByteRows,
    tables: PrefixTables,
    *,
    scored: Tensor,
    child_weight: float = 1.0,
    min_mass: float = 1e-4,
    whitespace_rows: bool = False,
) -> LossOutput:
    """Root KL plus completion cross-entropy in nats (arXiv 2609.34738; ``distillation_losses.md`` 1.14).

    Root: KL of the teacher's distribution, each token counted at its longest student prefix, to the student's. Child:
    where the text's token ``a`` begins longer tokens of the teacher, ``-sum_g M_g log P(r_g | ..., a)``: the student's
    probability of any token that begins with the bytes which complete group g. A cross-entropy, so the loss is not zero
    for a student that is the teacher.

    Unlike the paper, ``a`` is the text's token and not a sampled one; which tokens make groups is decided by their mass
    and not by a top-k, and a group's mass is that of all tokens that extend it, however improbable.

    Args:
        teacher: its predictions at all B * T positions, whole or the most probable tokens.
        student: its head at all B * T positions.
        rows: the student's tokens of the batch.
        scored: bool [B, T], the student's scored tokens; a child needs one after ``a``.
        child_weight: factor of the child term.
        min_mass: least probability of a teacher token that a group is named after.
        whitespace_rows: compare also at student tokens of spaces and tabs alone.

    Returns:
        A unit is a row of ``root_rows``. Metrics: ``token_coverage``, of the scored tokens; ``children``, of the units;
        ``child_loss``, a child; ``branching``, a child: the teacher's mass on tokens longer than ``a``; ``completed``:
        what of it the child term works on; the masses of ``byte_targets.mass_metrics``.
    """
    kept = root_rows(rows, tables, whitespace_rows=whitespace_rows)
    follows = nn.functional.pad(scored.flatten()[1:], (0, 1))[rows.student]
    has_child = kept & follows & _begins_longer(rows.student_id, tables)
    roots = _compare(teacher, student, rows.at(kept & ~has_child), tables, None)
    both = _compare(teacher, student, rows.at(has_child), tables, _Child(child_weight, min_mass))
    nothing = torch.zeros(2, device=scored.device)
    metrics = {
        name: roots.metrics.get(name, nothing) + both.metrics.get(name, nothing)
        for name in (*MASSES, "child_loss", "branching", "completed")
    }
    count = kept.sum()
    metrics |= {"token_coverage": ratio(count, scored.sum()), "children": ratio(has_child.sum(), count)}
    return LossOutput(roots.total + both.total, count, metrics)


class _Child(NamedTuple):
    weight: float
    min_mass: float


def _begins_longer(token: Tensor, tables: PrefixTables) -> Tensor:
    """Whether a teacher token is longer than each student token and begins with its bytes."""
    node = tables.student_prefix[token]
    # Of the tokens that begin alike, the ones of the same bytes come first in byte order.
    last = tables.teacher_order[tables.teacher_end[node] - 1]
    return (node >= 0) & (tables.teacher_length[last] > tables.student_length[token])


def _compare(
    teacher: Predictions, student: LinearHead, rows: ByteRows, tables: PrefixTables, child: _Child | None
) -> RowwiseLoss:
    """The loss of rows that all have a child, or none."""
    predictions = teacher.at(rows.teacher - 1)

    def losses_of(block: slice, logits: Sequence[Tensor], _: Sequence[Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        logp = predictions.log_probs(block)
        targets = root_targets(logp, tables, complete=teacher.complete)
        loss = target_divergence(targets, tables.cell_logits(logits[0]))
        if child is None:
            return loss, mass_metrics(targets)
        groups = completion_groups(logp, rows.student_id[block], tables, child.min_mass)
        completion = completion_loss(groups, logits[1], tables)
        metrics = {
            "child_loss": ratio(completion.sum(), completion.new_tensor(len(completion))),
            "branching": ratio(groups.branching, completion.new_tensor(len(completion))),
            "completed": ratio(groups.mass.sum(), groups.branching),
        }
        return loss + child.weight * completion, mass_metrics(targets) | metrics

    heads = [student.at(rows.student - 1)] + ([] if child is None else [student.at(rows.student)])
    return rowwise_loss(losses_of, heads)


class CompletionGroups(NamedTuple):
    """Teacher tokens that a student token has begun, the ones that begin alike in one group.

    Attributes:
        row: int64 [G], ascending.
        mass: [G] the teacher's mass of the group.
        node: int64 [G], node of what completes the group's shortest token in the student's trie.
        branching: scalar, mass of all tokens that the rows' student tokens have begun, whether in a group or not.
    """

    row: Tensor
    mass: Tensor
    node: Tensor
    branching: Tensor


def completion_groups(logp: Tensor, begun: Tensor, tables: PrefixTables, min_mass: float) -> CompletionGroups:
    """Group the teacher tokens that are longer than ``begun`` and begin with its bytes.

    A group is a token of at least ``min_mass`` of which no other such token is a prefix, and all tokens that begin with
    it. Left out are groups that no single student token completes or goes on to complete, and what is in no group.

    Args:
        logp: [b, V_T] the teacher's log-probabilities at the row where ``begun`` begins, -inf where unknown.
        begun: int64 [b], student tokens.
    """
    length = tables.student_length[begun]
    node = tables.student_prefix[begun]
    row, place = expand_ranges(tables.teacher_start[node], tables.teacher_end[node])
    token = tables.teacher_order[place]
    longer = tables.teacher_length[token] > length[row]
    row, place, token = row[longer], place[longer], token[longer]
    mass = logp[row, token].exp()
    branching = mass.sum()

    large = mass >= min_mass
    row, place, token = row[large], place[large], token[large]
    node = tables.entry_prefix[tables.teacher_entry[token] + tables.teacher_length[token]]
    # The tokens that begin with a token follow it in byte order: a token names a group if none before it reaches it.
    line = row * (len(tables.teacher_order) + 1)
    reach = (line + tables.teacher_end[node]).cummax(0).values
    shortest = torch.ones_like(large[large])
    shortest[1:] = (line + place)[1:] >= reach[:-1]
    completion = tables.entry_completion[tables.teacher_entry[token] + length[row]]
    named = shortest & (completion >= 0)
    row, node, completion = row[named], node[named], completion[named]

    group, place = expand_ranges(tables.teacher_start[node], tables.teacher_end[node])
    masses = logp[row[group], tables.teacher_order[place]].exp()
    return CompletionGroups(row, segment_sum(masses, group, len(row)), completion, branching)


def completion_loss(groups: CompletionGroups, child_logits: Tensor, tables: PrefixTables) -> Tensor:
    """``-sum_g M_g log P(r_g)`` for each row: [b]; differentiable.

    Args:
        child_logits: [b, V_S] the student's logits after the token that began the groups.
    """
    group, place = expand_ranges(tables.student_start[groups.node], tables.student_end[groups.node])
    logits = child_logits[groups.row[group], tables.student_order[place]]
    completed = segment_logsumexp(logits, group, len(groups.row)) - child_logits.logsumexp(-1)[groups.row]
    return -segment_sum(groups.mass.to(completed.dtype) * completed, groups.row, len(child_logits))
