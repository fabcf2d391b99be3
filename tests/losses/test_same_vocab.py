from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.predictions import LinearHead, TopKPredictions
from losses.same_vocab import (
    DISTRIBUTION_DIVERGENCES,
    adaptive_kl,
    jeffreys,
    jsd,
    kl,
    reverse_kl,
    row_divergence,
    same_vocabulary_loss,
    skew_kl,
    skew_reverse_kl,
    tempered,
    tvd,
    with_tail,
)

TEACHER = (0.2, 0.5, 0.3)
STUDENT = (0.5, 0.3, 0.2)
BOUNDED = ("jsd", "tvd", "skew_kl", "skew_reverse_kl")


def log(probabilities: tuple[float, ...]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


Q, P = log(TEACHER), log(STUDENT)


def random_rows(rows: int, cells: int, seed: int, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(rows, cells, generator=generator, dtype=torch.float64)).log_softmax(-1)


def scalar_kl(q: list[float], p: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)


def scalar_divergence(name: str, q: list[float], p: list[float]) -> float:
    """Each divergence with its default parameter, spelled out in plain floats."""

    def mixed(weight: float, x: list[float], y: list[float]) -> list[float]:
        return [weight * a + (1 - weight) * b for a, b in zip(x, y, strict=True)]

    if name == "adaptive_kl":
        head, mass, gaps = set(), 0.0, [abs(a - b) for a, b in zip(q, p, strict=True)]
        for token in sorted(range(len(q)), key=lambda t: -q[t]):
            if mass >= 0.5:
                break
            head.add(token)
            mass += q[token]
        share = sum(gaps[token] for token in head) / sum(gaps)
        return share * scalar_kl(q, p) + (1 - share) * scalar_kl(p, q)
    half = mixed(0.5, q, p)
    return {
        "kl": scalar_kl(q, p),
        "reverse_kl": scalar_kl(p, q),
        "jeffreys": scalar_kl(q, p) + scalar_kl(p, q),
        "jsd": 0.5 * scalar_kl(q, half) + 0.5 * scalar_kl(p, half),
        "tvd": 0.5 * sum(abs(a - b) for a, b in zip(q, p, strict=True)),
        "skew_kl": scalar_kl(q, mixed(0.1, q, p)),
        "skew_reverse_kl": scalar_kl(p, mixed(0.1, p, q)),
    }[name]


def test_worked_numbers() -> None:
    assert kl(Q, P).item() == pytest.approx(0.1937941979, abs=1e-10)
    assert reverse_kl(Q, P).item() == pytest.approx(0.2238046572, abs=1e-10)
    assert jeffreys(Q, P).item() == pytest.approx(0.1937941979 + 0.2238046572, abs=2e-10)
    assert jsd(Q, P, 0.1).item() == pytest.approx(0.0175625983, abs=1e-10)
    assert jsd(Q, P, 0.5).item() == pytest.approx(0.0508746125, abs=1e-10)
    assert jsd(Q, P, 0.9).item() == pytest.approx(0.0196612263, abs=1e-10)
    assert tvd(Q, P).item() == pytest.approx(0.3, abs=1e-12)


def test_jsd_approaches_its_ends() -> None:
    assert jsd(Q, P, 0.001).item() / 0.001 == pytest.approx(0.19361253, abs=1e-8)
    assert jsd(Q, P, 0.999).item() / 0.001 == pytest.approx(0.22352310, abs=1e-8)
    assert jsd(Q, P, 0.0) == kl(Q, P)
    assert jsd(Q, P, 1.0) == reverse_kl(Q, P)
    assert jsd(Q, P, 0.5).item() == pytest.approx(jsd(P, Q, 0.5).item(), abs=1e-15)


def test_jsd_gradient_on_the_student_logits() -> None:
    logits = P.clone().requires_grad_()
    (found,) = torch.autograd.grad(jsd(Q, logits.log_softmax(-1), 0.1), logits)
    expected = torch.tensor([0.0270257810, -0.0179162911, -0.0091094898], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", DISTRIBUTION_DIVERGENCES)
@given(seed=st.integers(0, 2**16), cells=st.integers(2, 7), spread=st.floats(0.1, 6))
@settings(max_examples=30, deadline=None)
def test_values_against_plain_floats(name: str, seed: int, cells: int, spread: float) -> None:
    teacher, student = random_rows(1, cells, seed, spread)[0], random_rows(1, cells, seed + 1, spread)[0]
    expected = scalar_divergence(name, teacher.exp().tolist(), student.exp().tolist())
    assert DISTRIBUTION_DIVERGENCES[name](teacher, student).item() == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", DISTRIBUTION_DIVERGENCES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    teacher, logits = random_rows(3, 5, 0), random_rows(3, 5, 1).requires_grad_()
    if name == "adaptive_kl":
        # Its weights carry no gradient: the reference holds them fixed.
        with torch.no_grad():
            both = kl(teacher, logits), reverse_kl(teacher, logits)
            head = (adaptive_kl(teacher, logits) - both[1]) / (both[0] - both[1])

        def reference(z: Tensor) -> Tensor:
            s = z.log_softmax(-1)
            return head * kl(teacher, s) + (1 - head) * reverse_kl(teacher, s)

        (expected,) = torch.autograd.grad(reference(logits).sum(), logits)
        (found,) = torch.autograd.grad(adaptive_kl(teacher, logits.log_softmax(-1)).sum(), logits)
        torch.testing.assert_close(found, expected)
        return
    assert torch.autograd.gradcheck(
        lambda z: DISTRIBUTION_DIVERGENCES[name](teacher, z.log_softmax(-1)), logits.detach().requires_grad_()
    )


@pytest.mark.parametrize("name", DISTRIBUTION_DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_with_zero_gradient_at_equality(name: str, dtype: torch.dtype) -> None:
    logits = random_rows(4, 11, 0).to(dtype).requires_grad_()
    student = logits.log_softmax(-1)
    value = DISTRIBUTION_DIVERGENCES[name](student.detach(), student)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.eq(0).all()
    assert gradient.abs().max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", DISTRIBUTION_DIVERGENCES)
def test_impossible_tokens_on_either_side(name: str) -> None:
    """Values and gradients stay finite; cells that neither side can give change nothing."""
    teacher = torch.tensor(
        [[0.0, -torch.inf, -torch.inf, -torch.inf], [-0.5, -torch.inf, math.log1p(-math.exp(-0.5)), -torch.inf]]
    )
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf], [0.3, -torch.inf, -0.2, -torch.inf]], requires_grad=True)
    value = DISTRIBUTION_DIVERGENCES[name](teacher, logits.log_softmax(-1))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    both = [0, 2]
    alone = DISTRIBUTION_DIVERGENCES[name](teacher[1, both], logits[1, both].log_softmax(-1))
    assert value[1].item() == pytest.approx(alone.item(), rel=1e-5)
    # Where the two have no token in common every divergence is at its largest.
    assert value[0] == value.max()


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_divergences_stay_bounded_without_common_tokens(name: str) -> None:
    apart = torch.tensor([0.0, -torch.inf]), torch.tensor([-torch.inf, 0.0])
    bound = {"jsd": math.log(2), "tvd": 1.0, "skew_kl": -math.log(0.1), "skew_reverse_kl": -math.log(0.1)}[name]
    assert DISTRIBUTION_DIVERGENCES[name](*apart).item() == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("name", DISTRIBUTION_DIVERGENCES)
@given(seed=st.integers(0, 2**16), spread=st.floats(0, 60))
@settings(max_examples=30, deadline=None)
def test_float32_is_finite_and_close_to_float64(name: str, seed: int, spread: float) -> None:
    teacher, student = random_rows(4, 9, seed, spread), random_rows(4, 9, seed + 1, spread)
    exact = DISTRIBUTION_DIVERGENCES[name](teacher, student)
    found = DISTRIBUTION_DIVERGENCES[name](teacher.float(), student.float())
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
    assert exact.min() > -1e-12


def test_parameters_are_checked_against_the_divergence() -> None:
    assert row_divergence("jsd", beta=0.1)(Q, P) == jsd(Q, P, 0.1)
    assert row_divergence("skew_kl", alpha=0.3)(Q, P) == skew_kl(Q, P, 0.3)
    assert row_divergence("skew_reverse_kl")(Q, P) == skew_reverse_kl(Q, P, 0.1)
    with pytest.raises(ValueError, match="kl has no parameter beta"):
        row_divergence("kl", beta=0.1)


@pytest.mark.parametrize(("skewed", "plain"), [(skew_kl, kl), (skew_reverse_kl, reverse_kl)])
def test_no_skew_is_the_plain_divergence_however_far_apart(skewed, plain) -> None:
    teacher, student = (torch.tensor([row]).log_softmax(-1) for row in ((0.0, -40.0, -5.0), (-40.0, 0.0, -60.0)))
    assert skewed(teacher, student, 0.0).item() == pytest.approx(plain(teacher, student).item(), rel=1e-6)
    (found,) = torch.autograd.grad(skewed(teacher, student.requires_grad_(), 0.0).sum(), student)
    assert found.isfinite().all()


def test_temperature_softens_logits() -> None:
    logits = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)
    powers = logits.exp() ** (1 / 2.5)
    torch.testing.assert_close(tempered(logits, 2.5).exp(), powers / powers.sum())
    torch.testing.assert_close(tempered(logits.log_softmax(-1), 2.5), tempered(logits, 2.5))


def truncate(logp: Tensor, keep: int) -> Tensor:
    best = logp.topk(keep, dim=-1)
    return torch.full_like(logp, -torch.inf).scatter(-1, best.indices, best.values)


def test_the_tail_is_one_cell_with_what_is_left_on_either_side() -> None:
    teacher, student = random_rows(5, 8, 0), random_rows(5, 8, 1)
    cells = with_tail(truncate(teacher, 3), student)
    for side, whole in zip(cells, (teacher, student), strict=True):
        order = teacher.argsort(-1, descending=True)
        expected = whole.exp().gather(1, order)
        torch.testing.assert_close(side.exp()[:, -1], expected[:, 3:].sum(1))
        torch.testing.assert_close(side.exp()[:, :-1].gather(1, order[:, :3]), expected[:, :3])
        assert side.exp().count_nonzero(-1).eq(4).all()


@given(seed=st.integers(0, 2**16), keep=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_a_longer_list_of_known_tokens_never_lowers_kl(seed: int, keep: int) -> None:
    teacher, student = random_rows(2, 8, seed), random_rows(2, 8, seed + 1)
    shorter, longer = (kl(*with_tail(truncate(teacher, k), student)) for k in (keep, keep + 1))
    assert (shorter <= longer + 1e-12).all()
    assert (longer <= kl(teacher, student) + 1e-12).all()


def test_the_students_tail_keeps_its_gradient_when_it_is_tiny_or_missing() -> None:
    logits = torch.tensor([[30.0, 0.0, -5.0]], requires_grad=True)
    teacher = torch.tensor([[math.log(0.9), -torch.inf, -torch.inf]])
    tail = with_tail(teacher, logits.log_softmax(-1))[1][0, -1]
    assert tail.item() == pytest.approx(math.log(math.exp(-30) + math.exp(-35)), rel=1e-6)
    everything = torch.tensor([[0.5, 0.3, 0.2]]).log()
    value = kl(*with_tail(everything, logits.log_softmax(-1)))
    assert value.item() == pytest.approx(kl(everything, logits.log_softmax(-1)).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(gradient, logits.softmax(-1) - everything.exp(), rtol=1e-4, atol=1e-6)


def head(rows: int, width: int, vocabulary: int, seed: int) -> LinearHead:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return LinearHead(hidden, torch.randn(vocabulary, width, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(("temperature", "scaled", "factor"), [(1.0, False, 1.0), (2.0, False, 1.0), (2.0, True, 4.0)])
def test_the_loss_is_the_sum_over_rows(temperature: float, scaled: bool, factor: float) -> None:
    teacher, student = head(7, 4, 13, 0), head(7, 4, 13, 1)
    hidden = student.hidden.requires_grad_()
    found = same_vocabulary_loss(teacher, student, temperature=temperature, scale_by_temperature=scaled)
    dense = torch.nn.functional.kl_div(
        (hidden @ student.weight.t() / temperature).log_softmax(-1),
        (teacher.hidden @ teacher.weight.t() / temperature).softmax(-1),
        reduction="sum",
    )
    torch.testing.assert_close(found.total, factor * dense)
    torch.testing.assert_close(
        *(torch.autograd.grad(total, hidden)[0] for total in (found.total, factor * dense)), rtol=1e-9, atol=1e-12
    )
    assert found.count == 7


def test_forward_kl_is_pytorchs_bit_for_bit() -> None:
    teacher = LinearHead(torch.randn(1, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4))
    student = LinearHead(torch.randn(1, 4, generator=torch.Generator().manual_seed(1)), torch.eye(4))
    q, p = teacher.hidden.log_softmax(-1), student.hidden.log_softmax(-1)
    assert torch.equal(same_vocabulary_loss(teacher, student).total, (q.exp() * (q - p)).sum())


@pytest.mark.parametrize("name", DISTRIBUTION_DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_truncated_teacher_that_is_the_student_costs_nothing(name: str, temperature: float) -> None:
    student = head(6, 4, 13, 0)
    hidden = student.hidden.requires_grad_()
    best = student.log_probs(slice(None)).topk(5, dim=1)
    teacher = TopKPredictions(best.indices, best.values, 13)
    found = same_vocabulary_loss(teacher, student, divergence=DISTRIBUTION_DIVERGENCES[name], temperature=temperature)
    (gradient,) = torch.autograd.grad(found.total, hidden)
    assert abs(found.total.item()) < 1e-9
    if name != "tvd":  # the sign of a difference that is only rounding
        assert gradient.abs().max() < 1e-6


def test_vocabularies_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="13 tokens and the student 12"):
        same_vocabulary_loss(head(2, 4, 13, 0), head(2, 4, 12, 0))
