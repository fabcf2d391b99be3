"""Toy vocabularies of byte strings, texts cut into their tokens, and what the methods say of them, spelled out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alignment.byte_view import ByteView
from alignment.prefix_table import prefix_table
from losses.byte_rows import ByteRows, TeacherLine, byte_rows
from losses.predictions import LinearHead
from losses.prefix_tables import PrefixTables

Vocabulary = Sequence[bytes | None]


def tables_of(
    teacher: Vocabulary, student: Vocabulary, teacher_stop: Sequence[int] = (), student_stop: Sequence[int] = ()
) -> PrefixTables:
    """The tables of two vocabularies given by their tokens' bytes; None stands for a special token."""
    views = ByteView.from_token_bytes(teacher), ByteView.from_token_bytes(student)
    tensors = {name: torch.from_numpy(array) for name, array in prefix_table(*views).items()}
    return PrefixTables(
        **{name: each if each.dtype == torch.bool else each.long() for name, each in tensors.items()},
        teacher_stop=torch.tensor(teacher_stop, dtype=torch.long),
        student_stop=torch.tensor(student_stop, dtype=torch.long),
    )


class Side(NamedTuple):
    ids: Tensor
    chunk: Tensor
    scored: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Texts:
    """Texts in two tokenizations: ids of each text, without the special token that is put before it."""

    teacher: Vocabulary
    student: Vocabulary
    teacher_ids: Sequence[Sequence[int]]
    student_ids: Sequence[Sequence[int]]

    def sides(self) -> tuple[Side, Side, int]:
        """Both sides, padded, with a context token in front; chunks end at common boundaries."""
        chunk_lists, most = [], 0
        for pair in zip(self.teacher_ids, self.student_ids, strict=True):
            ends = [
                np.cumsum([_length(v[i]) for i in ids]).tolist()
                for ids, v in zip(pair, (self.teacher, self.student), strict=True)
            ]
            common = sorted(set(ends[0]) & set(ends[1]))
            chunk_lists.append([[sum(c < end for c in common) for end in side] for side in ends])
            most = max(most, len(common))
        sides = [
            _side(ids, [chunks[i] for chunks in chunk_lists], vocabulary)
            for i, (ids, vocabulary) in enumerate(
                ((self.teacher_ids, self.teacher), (self.student_ids, self.student)),
            )
        ]
        return sides[0], sides[1], most

    def rows(self) -> tuple[ByteRows, TeacherLine]:
        return byte_rows(*self.sides())


def _length(token: bytes | None) -> int:
    return 1 if token is None else len(token)


def _side(texts: Sequence[Sequence[int]], chunks: Sequence[Sequence[int]], vocabulary: Vocabulary) -> Side:
    width = 1 + max(len(ids) for ids in texts)
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    chunk, lengths = torch.full_like(ids, -1), torch.zeros_like(ids)
    for row, (text, numbers) in enumerate(zip(texts, chunks, strict=True)):
        ids[row, 1 : 1 + len(text)] = torch.tensor(text)
        chunk[row, 1 : 1 + len(text)] = torch.tensor(numbers)
        lengths[row, 1 : 1 + len(text)] = torch.tensor([len(vocabulary[i] or b"") for i in text])
    return Side(ids, chunk, chunk >= 0, lengths)


def head_of(probabilities: Tensor) -> LinearHead:
    """A head that predicts given distributions: [R, V]."""
    logits = probabilities.double().log().clamp(min=-1e4)
    return LinearHead(logits, torch.eye(logits.shape[1], dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------------------------
# The method, literally: dictionaries and loops over one text.


class Target(NamedTuple):
    """Mass by student bytes ("stop" for the stop cell), and the mass of everything else; None where there is none."""

    cells: dict[bytes | str, float]
    complement: float
    exact: bool


def longest(student: Vocabulary, data: bytes, limit: int | None = None) -> bytes | None:
    """The longest student token that ``data`` begins with, of at most ``limit`` bytes."""
    fitting = [t for t in student if t and data.startswith(t) and (limit is None or len(t) <= limit)]
    return max(fitting, key=len, default=None)


def uncovered_mass(q: Sequence[float]) -> float:
    """What ``q`` lacks to 1, without the rounding, which a small support would blow up."""
    missing = 1 - sum(q)
    return missing if missing > 1e-12 else 0.0


def root_target(
    teacher: Vocabulary,
    student: Vocabulary,
    q: Sequence[float],
    teacher_stop: Sequence[int],
    student_stop: Sequence[int],
) -> Target:
    cells: dict[bytes | str, float] = {}
    complement = uncovered_mass(q)
    for token, mass in enumerate(q):
        data = teacher[token]
        if data is None:
            cell = "stop" if token in teacher_stop and len(student_stop) else None
        else:
            cell = longest(student, data)
        if cell is None:
            complement += mass
        elif mass:
            cells[cell] = cells.get(cell, 0) + mass
    return Target(cells, complement, True)


def interior_target(
    teacher: Vocabulary, student: Vocabulary, q: Sequence[float], prefix: bytes, limit: int | None
) -> tuple[Target, float] | None:
    """The target after ``prefix``, and its support."""
    uncovered = uncovered_mass(q)
    extending = {i: t for i, t in enumerate(teacher) if t and t.startswith(prefix)}
    support = sum(q[i] for i in extending) + uncovered
    if support <= 0:
        return None
    cells: dict[bytes | str, float] = {}
    complement = uncovered / support
    for i, data in extending.items():
        piece = longest(student, data[len(prefix) :], limit)
        if piece is None:
            complement += q[i] / support
        elif q[i]:
            cells[piece] = cells.get(piece, 0) + q[i] / support
    return Target(cells, complement, True), support


def spanning_target(
    target: Target,
    support: float,
    teacher: Vocabulary,
    student: Vocabulary,
    rows: Sequence[Sequence[float]],
    ids: Sequence[int],
    index: int,
    offset: int,
) -> Target:
    """Move the mass of student tokens that spell the text on and end after teacher token ``index``.

    ``rows`` are the teacher's predictions of each of ``ids``.
    """
    text = b"".join(teacher[i] or b"\xff\xff\xff" for i in ids[index:])[offset:]
    inside = len(teacher[ids[index]]) - offset
    candidates = sorted({t for t in student if t and len(t) > inside and text.startswith(t)}, key=len)

    def value(candidate: bytes) -> float:
        left, mass = candidate_bytes(candidate), 1.0
        for q, token in zip(rows[index:], ids[index:], strict=True):
            data = teacher[token]
            if len(left) >= len(data):
                mass, left = mass * q[token], left[len(data) :]
                if not left:
                    return mass / support
            else:
                prefix_mass = sum(q[i] for i, t in enumerate(teacher) if t and t.startswith(left))
                return mass * prefix_mass / support
        raise AssertionError

    def candidate_bytes(candidate: bytes) -> bytes:
        return (teacher[ids[index]] or b"")[:offset] + candidate

    values = [value(candidate) for candidate in candidates]
    cells, complement = dict(target.cells), target.complement
    base = longest(student, text[:inside])
    if base is None:
        complement -= values[0]
    elif values[0]:
        cells[base] -= values[0]
    for i, candidate in enumerate(candidates):
        after = values[i + 1] if i + 1 < len(values) else 0
        if values[i]:
            cells[candidate] = cells.get(candidate, 0) + values[i] - after
    return Target(cells, complement, False)


def divergence(target: Target, student: Vocabulary, p: Sequence[float], student_stop: Sequence[int]) -> float:
    """KL of the target to the student's distribution ``p``.

    A cell that has given all its mass away is known to be empty: it is no part of "everything else".
    """
    cell_of = ["stop" if i in student_stop else t for i, t in enumerate(student)]
    others = [p[i] for i, cell in enumerate(cell_of) if cell is None or cell not in target.cells]
    complement = target.complement if others else 0.0
    total = 0.0
    for cell, mass in target.cells.items():
        share = mass / (1 if others else 1 - target.complement)
        if share > 1e-14:
            total += share * math.log(share / sum(p[i] for i, c in enumerate(cell_of) if c == cell))
    if complement > 1e-14:
        total += complement * math.log(complement / sum(others))
    return total


def cut(rng: np.random.Generator, text: bytes, vocabulary: Vocabulary) -> list[int]:
    """A random segmentation of ``text`` into tokens."""
    ids, place = [], 0
    while place < len(text):
        fitting = [i for i, t in enumerate(vocabulary) if t and text.startswith(t, place)]
        ids.append(int(rng.choice(fitting)))
        place += len(vocabulary[ids[-1]])
    return ids


def random_vocabulary(rng: np.random.Generator, alphabet: bytes, size: int, extra: Sequence[bytes] = ()) -> list:
    """A special token, all letters, and random strings of two to four letters, some of them twice."""
    letters = [bytes([letter]) for letter in alphabet]
    words = [bytes(rng.choice(list(alphabet), rng.integers(2, 5)).astype(np.uint8)) for _ in range(size)]
    return [None, *letters, *words, *extra]


def distributions(rng: np.random.Generator, rows: int, tokens: int) -> Tensor:
    """Peaked random distributions [rows, tokens]."""
    return torch.from_numpy(rng.dirichlet(np.full(tokens, 0.3), rows) + 1e-9).div_(1 + tokens * 1e-9)


def truncated(probabilities: Tensor, k: int) -> Mapping[str, Tensor]:
    """The ``k`` largest of each row, and the same rows with 0 elsewhere."""
    best = probabilities.topk(k, dim=1)
    return {
        "ids": best.indices,
        "logp": best.values.log(),
        "dense": torch.zeros_like(probabilities).scatter(1, best.indices, best.values),
    }
