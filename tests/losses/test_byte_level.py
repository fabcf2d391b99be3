from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from losses.byte_level import StudentBytes, byte_level_loss, teacher_contexts, text_bytes
from losses.symbol_targets import SymbolTargets

SPECIAL, SPACED_CAT, CAT, S, UGLY = range(5)
SPELLED = [b"", b" cat", b"cat", b"s", b"\xff\x00"]
SPELLING = StudentBytes(torch.tensor([0, 0, 4, 7, 8, 10]), torch.tensor(list(b"".join(SPELLED))))


@dataclass(frozen=True)
class Side:
    ids: Tensor
    chunk: Tensor
    scored: Tensor
    lengths: Tensor


def side(ids: list[int], chunk: list[int], lengths: list[int]) -> Side:
    chunks = torch.tensor([chunk])
    return Side(torch.tensor([ids]), chunks, chunks >= 0, torch.tensor([lengths]))


def test_bytes_are_those_of_the_tokens_and_special_tokens_have_none():
    student = side([SPECIAL, CAT, S, SPECIAL, UGLY], [-1, 0, 1, 2, 3], [0, 3, 1, 0, 2])
    text = text_bytes(student, student, 4, SPELLING)
    assert text.byte.tolist() == [*b"cats", 256, 0xFF, 0]
    assert text.token.tolist() == [1, 1, 1, 2, 3, 4, 4]
    assert text.place.tolist()[:4] == [0, 1, 2, 0]
    assert text.place.tolist()[5:] == [0, 1]


def test_a_space_before_the_text_is_read_over_and_is_no_place_to_read_on_from():
    student = side([SPECIAL, SPACED_CAT, S], [-1, 0, 1], [0, 3, 1])
    text = text_bytes(student, student, 2, SPELLING)
    assert bytes(text.byte.tolist()) == b"cats"
    assert text.place.tolist() == [1, 2, 3, 0]
    label = torch.tensor([[0.0, -1.0, -2.0]])
    contexts = teacher_contexts(student, student, 2, label, torch.tensor([len(each) for each in SPELLED]))
    assert contexts.token.tolist() == [S]
    assert (contexts.first.tolist(), contexts.row.tolist()) == ([3], [1])
    assert contexts.log_prob.tolist() == [-1.0]


def test_chunks_that_one_side_cannot_score_have_no_bytes():
    student = side([SPECIAL, CAT, S], [-1, 0, 1], [0, 3, 1])
    teacher = side([SPECIAL, S], [-1, 1], [0, 1])
    assert bytes(text_bytes(teacher, student, 2, SPELLING).byte.tolist()) == b"s"


def test_the_loss_is_cross_entropy_plus_divergence():
    logits = torch.randn(3, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(1)
    cells = torch.zeros(3, 256, dtype=torch.float64)
    cells[0, 97], cells[0, 98] = 0.75, 0.25
    cells[1, 97] = 0.4
    complement = torch.tensor([0.0, 0.6, 0.0], dtype=torch.float64)
    targets = SymbolTargets(cells, complement, torch.tensor([False, True, False]))
    byte = torch.tensor([97, 98, 99])
    found = byte_level_loss(logits, byte, targets, cross_entropy_weight=0.5, kl_weight=2.0)
    cross_entropy = -sum(math.log(p[row, value]) for row, value in enumerate(byte.tolist()))
    kl = 0.75 * math.log(0.75 / p[0, 97]) + 0.25 * math.log(0.25 / p[0, 98])
    kl += 0.4 * math.log(0.4 / p[1, 97]) + 0.6 * math.log(0.6 / (1 - p[1, 97]))
    assert float(found.total) == pytest.approx(0.5 * cross_entropy + 2.0 * kl)
    assert int(found.count) == 3
    metrics = {name: pytest.approx(pair.tolist(), rel=1e-6) for name, pair in found.metrics.items()}
    assert metrics == {
        "cross_entropy": [cross_entropy, 3],
        "kl": [kl, 2],
        "teacher_coverage": [2, 3],
        "complement": [0.6, 2],
        "lower_bound": [1, 2],
    }


def test_no_bytes_have_no_loss():
    logits = torch.zeros(0, 256, requires_grad=True)
    targets = SymbolTargets(torch.zeros(0, 256), torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    found = byte_level_loss(logits, torch.zeros(0, dtype=torch.long), targets)
    found.total.backward()
    assert (float(found.total.detach()), int(found.count)) == (0.0, 0)
