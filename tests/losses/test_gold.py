from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from losses.gold import VocabularySplit, comparable_spans, gold_loss, merged_spans, split_vocabularies
from losses.output import LossOutput
from losses.predictions import LinearHead, TopKPredictions


def side(ids: list[list[int]], chunks: list[list[int]]) -> SimpleNamespace:
    ids, chunk = torch.tensor(ids), torch.tensor(chunks)
    scored = chunk >= 0
    scored[:, 0] = False
    return SimpleNamespace(ids=ids, chunk=chunk, scored=scored, lengths=torch.ones_like(ids))


# Text 0: a chunk of two tokens against one, then one of one token each. Text 1: one of one against three.
TEACHER = side([[0, 3, 1, 2], [0, 4, 0, 0]], [[-1, 0, 0, 1], [-1, 0, -1, -1]])
STUDENT = side([[1, 2, 3, 0, 0], [1, 0, 3, 2, 0]], [[-1, 0, 1, -1, -1], [-1, 0, 0, 0, -1]])
NUM_CHUNKS = 2
# Teacher of 5 tokens, student of 4: two of them in common.
SPLIT = split_vocabularies(torch.tensor([4, 0]), torch.tensor([1, 3]), 5, 4)


def logits(of: SimpleNamespace, vocab: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*of.ids.shape, vocab, generator=generator, dtype=torch.float64)


def label_logp(of: SimpleNamespace, logp: Tensor) -> Tensor:
    """Each token's log-probability at the token, 0 at index 0."""
    found = logp[:, :-1].gather(2, of.ids[:, 1:, None]).squeeze(2)
    return torch.nn.functional.pad(found, (1, 0)).masked_fill(~of.scored, 0)


def run(
    teacher_logits: Tensor,
    student_logits: Tensor,
    sides: tuple[SimpleNamespace, SimpleNamespace] = (TEACHER, STUDENT),
    *,
    num_chunks: int = NUM_CHUNKS,
    merge: str = "bayesian",
    split: VocabularySplit = SPLIT,
    beta: float = 0.5,
    weights: tuple[float, float] = (0.7, 0.3),
) -> LossOutput:
    """The loss on heads whose logits [B, T, V] are given."""
    spans = comparable_spans(*sides, num_chunks)
    heads, factors = [], []
    for of, values in zip(sides, (teacher_logits, student_logits), strict=True):
        merged = merged_spans(of, label_logp(of, values.log_softmax(-1)), spans, num_chunks, merge)
        head = LinearHead(values.flatten(0, 1), torch.eye(values.shape[-1], dtype=values.dtype))
        heads.append(head.at(merged.rows))
        factors.append(merged.factor)
    return gold_loss(*heads, *factors, split, beta=beta, common_weight=weights[0], rest_weight=weights[1])


def literal(teacher: Tensor, student: Tensor, merge: str, beta: float, weights: tuple[float, float]) -> Tensor:
    """The definition span by span, in probabilities, from logits [B, T, V]."""
    # (text, positions of the teacher's tokens, positions of the student's tokens)
    spans = [(0, [1, 2], [1]), (0, [3], [2]), (1, [1], [1, 2, 3])]
    total = torch.zeros((), dtype=torch.float64)
    for text, *positions in spans:
        rows = []
        for of, values, tokens in zip((TEACHER, STUDENT), (teacher, student), positions, strict=True):
            probs = values[text].softmax(-1)
            row_token = tokens[-1] if merge == "bayesian" else tokens[0]
            row = probs[row_token - 1]
            for token in tokens:
                if token != row_token:
                    row = row * probs[token - 1, of.ids[text, token]]
            rows.append(row)
        q, p = rows
        common = torch.zeros((), dtype=torch.float64)
        for i, j in ((4, 1), (0, 3)):
            if beta == 0:
                common = common + q[i] * (q[i] / p[j]).log()
            elif beta == 1:
                common = common + p[j] * (p[j] / q[i]).log()
            else:
                m = beta * q[i] + (1 - beta) * p[j]
                common = common + beta * q[i] * (q[i] / m).log() + (1 - beta) * p[j] * (p[j] / m).log()
        q_rest, p_rest = (sorted((row[i] for i in ids), reverse=True) for row, ids in ((q, (1, 2, 3)), (p, (0, 2))))
        rest = abs(q_rest[0] - p_rest[0]) + abs(q_rest[1] - p_rest[1]) + q_rest[2]
        total = total + weights[0] * common + weights[1] * rest
    return total


def test_worked_vector_9():
    """specs/distillation_losses.md §6: the two merges of a span of two tokens."""
    text = side([[2, 0, 1]], [[-1, 0, 0]])
    logp = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [1, 1, 1]]], dtype=torch.float64).log()
    for merge, expected in (("observed", [0.30, 0.15, 0.05]), ("bayesian", [0.12, 0.30, 0.18])):
        merged = merged_spans(text, label_logp(text, logp), torch.tensor([0]), 1, merge)
        row = (logp.flatten(0, 1)[merged.rows] + merged.factor[:, None]).exp()
        assert row[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_worked_vector_11_tokens_outside_the_common_ones_are_suppressed():
    """specs/distillation_losses.md §6; the analytic gradient and a finite difference."""
    text = side([[0, 0]], [[-1, 0]])
    split = split_vocabularies(torch.tensor([0, 1]), torch.tensor([0, 1]), 3, 3)
    teacher, student = (
        torch.tensor([[row, [1, 1, 1]]], dtype=torch.float64).log() for row in ((0.4, 0.3, 0.3), (0.5, 0.2, 0.3))
    )

    def loss(student: Tensor) -> Tensor:
        return run(teacher, student, (text, text), num_chunks=1, split=split, beta=0, weights=(1, 0)).total

    step = torch.zeros_like(student)
    step[0, 0, 2] = 1e-5
    assert float(loss(student + step) - loss(student - step)) / 2e-5 == pytest.approx(0.21, abs=1e-8)
    student.requires_grad_()
    (found,) = torch.autograd.grad(loss(student), student)
    assert float(found[0, 0, 2]) == pytest.approx(0.21, abs=1e-12)


@pytest.mark.parametrize("merge", ["bayesian", "observed"])
@pytest.mark.parametrize("beta", [0, 0.3, 1])
def test_value_and_gradient_are_those_of_the_literal_definition(merge, beta):
    teacher, student = logits(TEACHER, 5, 0), logits(STUDENT, 4, 1).requires_grad_()
    found = run(teacher, student, merge=merge, beta=beta)
    expected = literal(teacher, student, merge, beta, (0.7, 0.3))
    torch.testing.assert_close(found.total, expected)
    gradients = [torch.autograd.grad(total, student)[0] for total in (found.total, expected)]
    torch.testing.assert_close(*gradients)
    assert found.count == 3


def test_one_vocabulary_and_single_tokens_give_the_jsd():
    text = side([[0, 1, 2]], [[-1, 0, 1]])
    everything = torch.arange(4)
    split = split_vocabularies(everything, everything, 4, 4)
    teacher, student = logits(text, 4, 0), logits(text, 4, 1)
    found = run(teacher, student, (text, text), split=split, weights=(1, 0))
    expected = sum(
        jensenshannon(teacher[0, row].softmax(-1).numpy(), student[0, row].softmax(-1).numpy()) ** 2 for row in (0, 1)
    )
    assert float(found.total) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("merge", ["bayesian", "observed"])
def test_rows_up_to_the_last_answer_token_matter_and_the_row_after_it_does_not(merge):
    """What TRL's ``observed`` has the other way round (specs/distillation_losses.md §8, 4)."""
    text = side([[0, 1, 2]], [[-1, 0, 0]])
    everything = torch.arange(3)
    options = {
        "num_chunks": 1,
        "merge": merge,
        "split": split_vocabularies(everything, everything, 3, 3),
        "weights": (1, 0),
    }
    teacher = logits(text, 3, 0)
    for row, differs in ((0, True), (1, True), (2, False)):
        student = teacher.clone()
        student[0, row] = student[0, row].roll(1)
        loss = float(run(teacher, student, (text, text), **options).total)
        assert (loss > 1e-3) if differs else loss == 0


def test_the_teacher_gets_no_gradient():
    teacher, student = logits(TEACHER, 5, 0).requires_grad_(), logits(STUDENT, 4, 1).requires_grad_()
    run(teacher, student).total.backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


def test_the_terms_are_reported():
    output = run(logits(TEACHER, 5, 0), logits(STUDENT, 4, 1), weights=(2.0, 5.0))
    common, rest = output.metrics["common"], output.metrics["rest"]
    assert common[1] == rest[1] == 3
    assert float(2 * common[0] + 5 * rest[0]) == pytest.approx(float(output.total), rel=1e-6)


def test_ids_are_common_or_rest():
    assert SPLIT.teacher_rest.tolist() == [1, 2, 3]
    assert SPLIT.student_rest.tolist() == [0, 2]


def test_a_truncated_teacher_is_refused():
    teacher = TopKPredictions(torch.tensor([[0, 1]]), torch.tensor([[-1.0, -2.0]]), 5)
    head = LinearHead(torch.zeros(1, 4), torch.eye(4))
    factor = torch.zeros(1)
    with pytest.raises(ValueError, match="whole distributions"):
        gold_loss(teacher, head, factor, factor, SPLIT, beta=0.5, common_weight=1, rest_weight=1)
