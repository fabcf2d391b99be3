from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignment.spans import align
from losses.chunks import AlignedScores, aligned_rows
from losses.output import LossOutput
from losses.predictions import LinearHead
from losses.same_vocab import row_divergence
from losses.simct import SharedTokens, realised_units, simct_loss, simct_rows

# distillation_losses.md §6, no. 7: the units Bread, Breads, Break and Cat.
TEACHER = [0.4, 0.2, 0.3, 0.1]
STUDENT = [[0.5, 0.2], [0.5, 0.3], [0.5, 0.1], [0.2]]


def unit_scores(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor([sum(map(math.log, unit)) / len(unit) for unit in probabilities], dtype=torch.float64)


@pytest.mark.parametrize("factor", [1.0, 0.5, 1e-3])
def test_worked_numbers_and_their_blindness_to_a_factor_of_all_probabilities(factor: float) -> None:
    scores = unit_scores([[factor * p for p in unit] for unit in STUDENT])
    assert scores.exp().sum().item() == pytest.approx(1.1271328984 * factor, abs=1e-9)
    assert scores.softmax(0).tolist() == pytest.approx([0.2805594322, 0.3436137257, 0.1983854771, 0.177441365])
    loss = simct_rows(torch.tensor(TEACHER, dtype=torch.float64).log()[None], scores[None])
    assert loss.item() == pytest.approx(0.1061664112, abs=1e-9)


def test_a_high_temperature_compares_deviations_from_the_mean_score() -> None:
    teacher, student = torch.tensor(TEACHER, dtype=torch.float64).log(), unit_scores(STUDENT)
    gap = (student - student.mean()) - (teacher - teacher.mean())
    scaled = 1e6 * simct_rows(teacher, student, temperature=1e3)
    assert scaled.item() == pytest.approx(gap.square().mean().item() / 2, rel=1e-2)


TEACHER_VOCABULARY = [b"", b"abc", b"b", b"a", b"ca", b"c", b"bb", b"aab"]
STUDENT_VOCABULARY = [b"", b"a", b"b", b"c", b"ab", b"bc", b"bb", b"cc"]
SHARED = SharedTokens(teacher=torch.tensor([3, 2, 5, 6]), student=torch.tensor([1, 2, 3, 6]))


class Side(NamedTuple):
    """A tokenized text behind one token without bytes; satisfies ``losses.chunks.TokenizedSide``."""

    ids: Tensor
    chunk: Tensor
    scored: Tensor
    lengths: Tensor


def tokenizations(teacher: list[int], student: list[int]) -> tuple[Side, Side, int]:
    """Both sides of a text, given as ids, with the chunks that the aligner finds."""
    lengths = [
        np.array([0, *(len(vocabulary[token]) for token in ids)])
        for vocabulary, ids in ((TEACHER_VOCABULARY, teacher), (STUDENT_VOCABULARY, student))
    ]
    chunks = align(*(each.cumsum() for each in lengths))
    sides = []
    for ids, chunk, length in zip(
        (teacher, student), (chunks.teacher_chunk, chunks.student_chunk), lengths, strict=True
    ):
        chunk = torch.from_numpy(chunk).long()[None]
        sides.append(Side(torch.tensor([[0, *ids]]), chunk, chunk >= 0, torch.from_numpy(length)[None]))
    return sides[0], sides[1], chunks.num_chunks


def head(vocabulary: list[bytes], tokens: int, seed: int) -> LinearHead:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(vocabulary) + 1, 3, generator=generator, dtype=torch.float64)  # one row of padding
    hidden = torch.randn(tokens, 3, generator=generator, dtype=torch.float64)
    return LinearHead(hidden.requires_grad_(), weight.requires_grad_(), size=len(vocabulary))


def label_logp(model: LinearHead, side: Side) -> Tensor:
    """Log-probability of every token but the first: [1, T], differentiable."""
    logp = (model.hidden @ model.weight[: model.vocab_size].T).log_softmax(-1)
    return torch.nn.functional.pad(logp[:-1].gather(1, side.ids[0, 1:, None]).squeeze(1), (1, 0))[None]


def loss_of(
    teacher: tuple[Side, LinearHead], student: tuple[Side, LinearHead], num_chunks: int, **options
) -> LossOutput:
    sides, heads = zip(teacher, student, strict=True)
    scores = [AlignedScores(label_logp(m, s), None, s.scored, s.chunk) for s, m in (teacher, student)]
    rows = aligned_rows(*sides, num_chunks)
    next_ids = (sides[0].ids.flatten()[rows.teacher + 1], sides[1].ids.flatten()[rows.student + 1])
    units = realised_units(*scores, next_ids, rows, num_chunks, SHARED)
    return simct_loss(heads[0].at(rows.teacher), heads[1].at(rows.student), units, SHARED, **options)


def dense_oracle(teacher: tuple[Side, LinearHead], student: tuple[Side, LinearHead], temperature: float) -> Tensor:
    """Reverse KL walked span by span over byte strings, from whole matrices of log-probabilities."""
    texts, logps, ends = [], [], []
    for (side, model), vocabulary in ((teacher, TEACHER_VOCABULARY), (student, STUDENT_VOCABULARY)):
        texts.append([vocabulary[token] for token in side.ids[0].tolist()])
        logps.append((model.hidden @ model.weight[: model.vocab_size].T).log_softmax(-1))
        ends.append(np.cumsum([len(data) for data in texts[-1]]).tolist())
    common = sorted(set(ends[0]) & set(ends[1]))
    total = logps[1].new_zeros(())
    for start, end in itertools.pairwise(common):
        rows, units, pieces = [], [], []
        for text, logp, end_of, vocabulary in zip(
            texts, logps, ends, (TEACHER_VOCABULARY, STUDENT_VOCABULARY), strict=True
        ):
            inside = [t for t in range(1, len(text)) if start < end_of[t] <= end]
            rows.append({data: logp[inside[0] - 1, i] for i, data in enumerate(vocabulary) if data})
            units.append(torch.stack([logp[t - 1, vocabulary.index(text[t])] for t in inside]).mean())
            pieces.append(tuple(text[t] for t in inside))
        candidates = sorted(set(TEACHER_VOCABULARY[1:]) & set(STUDENT_VOCABULARY[1:]))
        scores = [[row[data] for data in candidates] for row in rows]
        if not (pieces[0] == pieces[1] and len(pieces[0]) == 1 and pieces[0][0] in candidates):
            scores = [[*row, unit] for row, unit in zip(scores, units, strict=True)]
        q, p = ((torch.stack(row) / temperature).log_softmax(0) for row in scores)
        total = total + (p.exp() * (p - q.detach())).sum()
    return total


def segment(text: bytes, vocabulary: list[bytes], draw: st.DataObject) -> list[int]:
    ids = []
    while text:
        fitting = [i for i, data in enumerate(vocabulary) if data and text.startswith(data)]
        ids.append(draw.draw(st.sampled_from(fitting)))
        text = text[len(vocabulary[ids[-1]]) :]
    return ids


@given(st.text("abc", min_size=1, max_size=9), st.data(), st.sampled_from([1.0, 2.0]))
@settings(max_examples=60, deadline=None)
def test_value_and_gradients_are_those_of_a_walk_over_the_bytes(
    text: str, data: st.DataObject, temperature: float
) -> None:
    teacher_ids = segment(text.encode(), TEACHER_VOCABULARY, data)
    student_ids = segment(text.encode(), STUDENT_VOCABULARY, data)
    teacher_side, student_side, num_chunks = tokenizations(teacher_ids, student_ids)
    teacher = teacher_side, head(TEACHER_VOCABULARY, 1 + len(teacher_ids), 1)
    student = student_side, head(STUDENT_VOCABULARY, 1 + len(student_ids), 2)

    loss = loss_of(teacher, student, num_chunks, temperature=temperature)
    expected = dense_oracle(teacher, student, temperature)

    assert loss.count == num_chunks
    torch.testing.assert_close(loss.total, expected)
    parameters = (student[1].hidden, student[1].weight)
    found, exact = (torch.autograd.grad(value, parameters) for value in (loss.total, expected))
    torch.testing.assert_close(found, exact)
    assert torch.autograd.grad(loss_of(teacher, student, num_chunks).total, teacher[1].hidden, allow_unused=True) == (
        None,
    )


def test_a_split_token_does_not_take_the_next_word_with_it_and_the_last_span_counts() -> None:
    # Teacher: abc | b | c ; student: a | bc | b | c. Then the split token last: b | abc against b | a | bc.
    for teacher_ids, student_ids, extra in (([1, 2, 5], [1, 5, 2, 3], 1), ([2, 1], [2, 1, 5], 1)):
        teacher, student, num_chunks = tokenizations(teacher_ids, student_ids)
        loss = loss_of(
            (teacher, head(TEACHER_VOCABULARY, 1 + len(teacher_ids), 1)),
            (student, head(STUDENT_VOCABULARY, 1 + len(student_ids), 2)),
            num_chunks,
        )
        assert loss.count == len(teacher_ids)
        assert loss.metrics["unit_share"].tolist() == [extra, len(teacher_ids)]


def test_where_every_unit_is_shared_it_is_the_divergence_of_the_renormalised_shared_tokens() -> None:
    teacher_side, student_side, num_chunks = tokenizations([3, 2, 5], [1, 2, 3])  # a | b | c on both sides
    teacher, student = head(TEACHER_VOCABULARY, 4, 1), head(STUDENT_VOCABULARY, 4, 2)
    loss = loss_of((teacher_side, teacher), (student_side, student), num_chunks, divergence=row_divergence("kl"))
    q, p = (
        (model.hidden[:3] @ model.weight[ids].T).softmax(-1)
        for model, ids in ((teacher, SHARED.teacher), (student, SHARED.student))
    )
    torch.testing.assert_close(loss.total, (q * (q / p).log()).sum())
    mass = (teacher.hidden[:3] @ teacher.weight[: teacher.vocab_size].T).softmax(-1)[:, SHARED.teacher].sum()
    torch.testing.assert_close(loss.metrics["teacher_shared_mass"], torch.stack([mass, torch.tensor(3.0)]).float())


def test_no_aligned_row_is_zero_with_zero_gradients_and_the_same_metrics() -> None:
    teacher_side, student_side, num_chunks = tokenizations([3], [1])
    nowhere = student_side._replace(scored=torch.zeros_like(student_side.scored))
    teacher, student = head(TEACHER_VOCABULARY, 2, 1), head(STUDENT_VOCABULARY, 2, 2)
    loss = loss_of((teacher_side, teacher), (nowhere, student), num_chunks)
    assert (loss.total, loss.count) == (0, 0)
    for gradient in torch.autograd.grad(loss.total, (student.hidden, student.weight)):
        assert gradient.abs().max() == 0
    some = loss_of((teacher_side, teacher), (student_side, student), num_chunks)
    assert set(loss.metrics) == set(some.metrics)
