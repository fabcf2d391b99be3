"""What a teacher says of student tokens that run past the end of its own token.

Legend: N rows, K teacher tokens of the line (``losses.byte_rows``), P candidates: a row and a student token that spells
the text from the row's first byte on and ends after the teacher's token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losses.byte_rows import ByteRows, TeacherLine
from losses.byte_targets import Moves
from losses.predictions import Predictions
from losses.prefix_tables import PrefixTables
from losses.ranges import expand_ranges, segment_logsumexp, segment_sum

_BRANCHING = 256
_ROWS_PER_BLOCK = 32


def spanning_moves(rows: ByteRows, line: TeacherLine, teacher: Predictions, tables: PrefixTables) -> Moves:
    """Give every spanning row's candidates their mass, out of the cell of the longest one inside the teacher's token.

    The mass of a candidate is that of the teacher's own tokens in the text as far as it completes them, times that of
    all tokens that begin as what it has of the last one. Other tokenizations of the same bytes have mass too: this is a
    lower bound. Candidates are prefixes of each other: each gets what it has more than the next longer one.

    Args:
        teacher: at all B * T positions.
    """
    candidates = _candidates(rows, line, tables)
    value = _log_values(candidates, rows, line, teacher, tables)
    first = candidates.row.diff(prepend=candidates.row.new_tensor([-1])) != 0
    following = torch.full_like(value, -torch.inf)
    following[:-1] = torch.where(first[1:], -torch.inf, value[1:])
    shortest = candidates.row[first]
    entry = tables.teacher_entry[rows.teacher_id[shortest]] + rows.offset[shortest]
    inside = tables.entry_piece[entry]
    row = torch.cat([candidates.row, shortest])
    column = torch.cat([candidates.token, torch.where(inside < 0, tables.residual, inside)])
    gain = torch.cat([value, torch.full_like(value[first], -torch.inf)])
    loss = torch.cat([following, value[first]])
    order = row.argsort(stable=True)
    return Moves(row[order], column[order], gain[order], loss[order])


class _Candidates(NamedTuple):
    """By row, the shortest token first; ``end`` is the place on the line after its last byte. int64 [P] each."""

    row: Tensor
    token: Tensor
    end: Tensor


def _candidates(rows: ByteRows, line: TeacherLine, tables: PrefixTables) -> _Candidates:
    """Read the text from each spanning row's first byte on through the student's trie, all rows at once."""
    row = rows.spanning.nonzero().squeeze(1)
    place, node = rows.start[row], torch.zeros_like(row)
    stop = line.stop[line.owner[place]]
    found = [(row[:0], row[:0], row[:0])]
    while len(row):
        owner = line.owner[place]
        entry = tables.teacher_entry[line.id[owner]] + place - line.start[owner]
        key = node * _BRANCHING + tables.entry_byte[entry]
        edge = torch.searchsorted(tables.student_key, key).clamp(max=len(tables.student_key) - 1)
        matches = tables.student_key[edge] == key
        row, place, stop, node = row[matches], place[matches] + 1, stop[matches], edge[matches] + 1
        token = tables.student_token[node]
        hit = (token >= 0) & (place > rows.start[row] + rows.remaining[row])
        found.append((row[hit], token[hit], place[hit]))
        more = place < stop
        row, place, stop, node = row[more], place[more], stop[more], node[more]
    row, token, end = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = row.argsort(stable=True)
    return _Candidates(row[order], token[order], end[order])


def _log_values(
    candidates: _Candidates,
    rows: ByteRows,
    line: TeacherLine,
    teacher: Predictions,
    tables: PrefixTables,
) -> Tensor:
    """Log of each candidate's mass: [P]."""
    first, last = line.owner[rows.start[candidates.row]], line.owner[candidates.end - 1]
    candidate, index = expand_ranges(first, last + 1)
    token = line.id[index]
    spelled = torch.minimum(candidates.end[candidate] - line.start[index], tables.teacher_length[token])
    node = tables.entry_prefix[tables.teacher_entry[token] + spelled]
    completed, place = spelled == tables.teacher_length[token], tables.teacher_place[token]
    start = torch.where(completed, place, tables.teacher_start[node])
    end = torch.where(completed, place + 1, tables.teacher_end[node])
    log_mass = range_log_mass(teacher, line.position[index] - 1, start, end, tables.teacher_order)
    return segment_sum(log_mass, candidate, len(candidates.row))


@torch.no_grad()
def range_log_mass(teacher: Predictions, position: Tensor, start: Tensor, end: Tensor, order: Tensor) -> Tensor:
    """Log-probability [P] of the tokens ``order[start:end]`` at each of P positions; a position is read once."""
    positions, index = position.unique(return_inverse=True)
    by_position = index.argsort()
    blocks = torch.arange(0, len(positions) + _ROWS_PER_BLOCK, _ROWS_PER_BLOCK, device=position.device)
    edges = torch.searchsorted(index[by_position], blocks)
    parts, teacher = [], teacher.at(positions)
    for block, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        first = block * _ROWS_PER_BLOCK
        logp = teacher.log_probs(slice(first, first + _ROWS_PER_BLOCK))
        pairs = by_position[low:high]
        pair, place = expand_ranges(start[pairs], end[pairs])
        parts.append(segment_logsumexp(logp[index[pairs][pair] - first, order[place]], pair, len(pairs)))
    if not parts:
        return torch.zeros(0, device=position.device)
    masses = torch.cat(parts)
    return torch.empty_like(masses).scatter_(0, by_position, masses)
