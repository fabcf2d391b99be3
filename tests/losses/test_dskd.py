from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from losses.dskd import cross_model_attention, dual_space_loss, head_projection, moments, standard_deviation
from losses.output import LossOutput
from losses.predictions import LinearHead
from losses.same_vocab import row_divergence

STUDENT_VOCABULARY, TEACHER_VOCABULARY = 11, 13
STUDENT_WIDTH, TEACHER_WIDTH = 4, 6
STUDENT_ROWS, TEACHER_ROWS = 9, 7
TEMPERATURE = 2.0
TEACHER_ROW_WEIGHT = 1.5


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Everything that the loss reads, as leaves in float64; the projected teacher is right at every other row."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    found = {
        "student_hidden": leaf(STUDENT_ROWS, STUDENT_WIDTH),
        "student_weight": leaf(STUDENT_VOCABULARY, STUDENT_WIDTH),
        "student_bias": leaf(STUDENT_VOCABULARY),
        "teacher_hidden": leaf(TEACHER_ROWS, TEACHER_WIDTH),
        "teacher_weight": leaf(TEACHER_VOCABULARY, TEACHER_WIDTH),
        "projected_teacher": leaf(STUDENT_ROWS, STUDENT_WIDTH),
        "projected_student": leaf(TEACHER_ROWS, TEACHER_WIDTH),
    }
    logits = found["projected_teacher"] @ found["student_weight"].t() + found["student_bias"]
    labels = logits.argmax(1)
    labels[::2] = (labels[::2] + 1) % STUDENT_VOCABULARY
    return found | {"labels": labels}


def _loss(tensors: dict[str, Tensor], divergence: str = "skew_reverse_kl") -> LossOutput:
    return dual_space_loss(
        LinearHead(tensors["student_hidden"], tensors["student_weight"], tensors["student_bias"]),
        LinearHead(tensors["teacher_hidden"], tensors["teacher_weight"]),
        tensors["projected_teacher"],
        tensors["projected_student"],
        tensors["labels"],
        divergence=row_divergence(divergence),
        temperature=TEMPERATURE,
        teacher_row_weight=TEACHER_ROW_WEIGHT,
    )


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits / TEMPERATURE, 0)


def _dense(tensors: dict[str, Tensor]) -> Tensor:
    """The sum as the papers write it, position by position, with the default divergence."""
    weight, bias = tensors["student_weight"], tensors["student_bias"]
    total = torch.zeros((), dtype=torch.float64)
    for row in range(STUDENT_ROWS):
        label = int(tensors["labels"][row])
        projected = weight.detach() @ tensors["projected_teacher"][row] + bias.detach()
        total = total - torch.log(torch.softmax(projected, 0)[label])
        if int(projected.argmax()) == label:
            student = _softmax(weight @ tensors["student_hidden"][row] + bias)
            mixture = 0.9 * _softmax(projected).detach() + 0.1 * student
            total = total + (student * (student / mixture).log()).sum()
    for row in range(TEACHER_ROWS):
        teacher_weight = tensors["teacher_weight"].detach()
        teacher = _softmax(teacher_weight @ tensors["teacher_hidden"][row].detach())
        student = _softmax(teacher_weight @ tensors["projected_student"][row])
        total = total + TEACHER_ROW_WEIGHT * (teacher * (teacher / student).log()).sum()
    return total


def test_value_and_gradients_are_those_of_the_dense_sum(tensors) -> None:
    output = _loss(tensors)
    dense = _dense(tensors)
    assert output.count == STUDENT_ROWS
    torch.testing.assert_close(output.total, dense, rtol=1e-12, atol=0)
    learned = ["student_hidden", "student_weight", "student_bias", "projected_teacher", "projected_student"]
    found = torch.autograd.grad(output.total, [tensors[name] for name in learned], retain_graph=True)
    expected = torch.autograd.grad(dense, [tensors[name] for name in learned])
    for name, ours, theirs in zip(learned, found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
        assert ours.abs().max() > 0


def test_the_teacher_gets_no_gradient(tensors) -> None:
    names = ["teacher_hidden", "teacher_weight"]
    found = torch.autograd.grad(_loss(tensors).total, [tensors[name] for name in names], allow_unused=True)
    assert found == (None, None)


def test_rows_where_the_projected_teacher_is_wrong_do_not_pull_the_student(tensors) -> None:
    (found,) = torch.autograd.grad(_loss(tensors).total, tensors["student_hidden"])
    assert found[::2].abs().max() == 0
    assert (found[1::2].abs().amax(1) > 0).all()


def test_metrics_tell_the_parts_apart(tensors) -> None:
    output = _loss(tensors)
    values = {name: float(top / bottom) for name, (top, bottom) in output.metrics.items()}
    assert values["projector_accuracy"] == pytest.approx(4 / 9)
    parts = STUDENT_ROWS * (values["projector_cross_entropy"] + values["student_space"])
    parts += TEACHER_ROW_WEIGHT * TEACHER_ROWS * values["teacher_space"]
    assert parts == pytest.approx(float(output.total.detach()), rel=1e-6)


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "jsd", "tvd", "skew_kl", "skew_reverse_kl", "adaptive_kl"])
def test_two_equal_models_leave_nothing_but_the_projectors_cross_entropy(tensors, divergence) -> None:
    hidden, weight = tensors["student_hidden"], tensors["student_weight"]
    head = LinearHead(hidden, weight)
    labels = head.logits(slice(None)).argmax(1)
    output = dual_space_loss(
        head, LinearHead(hidden.detach(), weight.detach()), hidden.detach(), hidden, labels,
        divergence=row_divergence(divergence),
    )  # fmt: skip
    cross_entropy = -(head.log_probs(slice(None)).gather(1, labels[:, None])).sum()
    assert float(output.total.detach()) == pytest.approx(float(cross_entropy), rel=1e-12)
    for gradient in torch.autograd.grad(output.total, [hidden, weight]):
        assert gradient.abs().max() < 1e-12


def test_no_rows_are_zero_with_finite_gradients_and_the_same_metrics(tensors) -> None:
    nothing = {
        name: tensor[:0] if name.endswith(("hidden", "projected_teacher", "projected_student", "labels")) else tensor
        for name, tensor in tensors.items()
    }
    output = _loss(nothing)
    assert (float(output.total.detach()), int(output.count)) == (0, 0)
    (found,) = torch.autograd.grad(output.total, tensors["student_weight"])
    assert found.abs().max() == 0
    assert output.metrics.keys() == _loss(tensors).metrics.keys()
    assert all(pair.tolist() == [0, 0] for pair in output.metrics.values())


def test_projection_finds_the_map_between_two_heads() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(50, STUDENT_WIDTH, generator=generator)
    projection = torch.randn(STUDENT_WIDTH, TEACHER_WIDTH, generator=generator)
    source = target @ projection
    torch.testing.assert_close(head_projection(source, target).float(), projection, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head_projection(target, target).float(), torch.eye(STUDENT_WIDTH), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [3, 6])
def test_projection_is_the_pseudo_inverse_solution(rank) -> None:
    generator = np.random.default_rng(2)
    # More rows than one block; columns that depend on each other below full rank.
    target = generator.normal(size=(20_000, rank)) @ generator.normal(size=(rank, 6))
    source = generator.normal(size=(20_000, 3))
    expected = np.linalg.pinv(target) @ source
    found = head_projection(torch.from_numpy(source), torch.from_numpy(target))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_attention_by_hand() -> None:
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    key = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    query_sequence = torch.tensor([[0, -1, 0], [-1, -1, -1]])
    key_sequence = torch.tensor([[-1, 0, 0, 0, -1], [-1] * 5])
    to_key, to_query = cross_model_attention(query, key, query_sequence, key_sequence)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    expected_back = torch.zeros(5, 3, dtype=torch.float64)
    scores = [[math.exp(float(query[0, i] @ key[0, j]) / 2) for j in range(5)] for i in range(3)]
    for i in (0, 2):
        for j in (1, 2, 3):
            expected[i, j] = scores[i][j] / sum(scores[i][1:4])
            expected_back[j, i] = scores[i][j] / (scores[0][j] + scores[2][j])
    torch.testing.assert_close(to_key[0], expected)
    torch.testing.assert_close(to_query[0], expected_back)
    assert to_key[1].abs().max() == 0
    assert to_query[1].abs().max() == 0


def test_sequences_of_one_row_attend_as_if_each_had_its_own() -> None:
    generator = torch.Generator().manual_seed(5)
    query, key = (torch.randn(1, length, 4, generator=generator) for length in (5, 7))
    query_sequence, key_sequence = torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    to_key, to_query = cross_model_attention(query, key, query_sequence, key_sequence)
    for ours, theirs in ((slice(0, 2), slice(0, 3)), (slice(2, 5), slice(3, 7))):
        alone = cross_model_attention(
            query[:, ours], key[:, theirs], query_sequence[:, ours] * 0, key_sequence[:, theirs] * 0
        )
        torch.testing.assert_close(to_key[:, ours, theirs], alone[0])
        torch.testing.assert_close(to_query[:, theirs, ours], alone[1])
    torch.testing.assert_close(to_key.sum(2), torch.ones(1, 5))
    torch.testing.assert_close(to_query.sum(2), torch.ones(1, 7))


def test_moments_of_parts_give_the_deviation_of_the_whole() -> None:
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 3 + 5
    total = moments(values[:7]) + moments(values[7:7]) + moments(values[7:])
    assert float(standard_deviation(total)) == pytest.approx(float(values.numpy().std()), rel=1e-12)
    assert float(standard_deviation(moments(torch.full((3,), 2.0)))) > 0
