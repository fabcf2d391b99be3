from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.alm import AlignedScores, alm_from_token_scores, alm_loss
from losses.chunks import chunk_end_mask, chunk_sums, shift_labels, shift_scores
from losses.output import LossOutput
from losses.scores import token_scores

# The hand-sized case of alm.md §9.3: three tokens in the vocabulary, id 0 begins a pre-token, id 1 is every label.
TEACHER_LABEL = [0.50, 0.25, 0.40, 0.80, 0.60, 0.90, 0.50]
TEACHER_BOUNDARY = [0.05, 0.10, 0.50, 0.02, 0.30, 0.05, 0.01]
TEACHER_CHUNKS = [0, 1, 1, 2, 3, 4, 4]
STUDENT_LABEL = [0.20, 0.30, 0.90, 0.50, 0.70, 0.80, 0.95, 0.50]
STUDENT_BOUNDARY = [0.06, 0.40, 0.05, 0.04, 0.20, 0.01, 0.02, 0.03]
STUDENT_CHUNKS = [0, 1, 2, 2, 3, 4, 4, 4]
# The teacher's log-probabilities of what is compared, and the mean binary cross-entropy at temperature 1, 5, 100.
PLAIN = ([-2.079441542, -0.916290732, -0.223143551, -0.616186139], [0.623052470, 0.423949705, 0.052229997])
DEBIASED = ([-2.772588722, -4.828313737, -1.427116356, -5.221356325], [0.238516228, 0.651688946, 0.148565242])
MERGED = ([-2.772588722, -2.343407088, -5.221356325], [0.215286940, 0.682767330, 0.146829046])


def hand_sized(label: list[float], boundary: list[float], chunks: list[int]) -> AlignedScores:
    """Scores through the whole path: logits of a three-token head, the shift, boundary mass at chunk ends."""
    a, b = torch.tensor(label, dtype=torch.float64), torch.tensor(boundary, dtype=torch.float64)
    hidden = torch.stack([b, a, 1 - a - b], 1).log()
    chunk_ids = torch.tensor([chunks])
    scored = torch.ones_like(chunk_ids, dtype=torch.bool)
    scores = token_scores(
        hidden,
        torch.eye(3, dtype=torch.float64),
        shift_labels(torch.ones_like(chunk_ids), scored).flatten(),
        boundary_mask=torch.tensor([True, False, False]),
        boundary_rows=chunk_end_mask(chunk_ids, 5).flatten(),
    )
    return AlignedScores(shift_scores(scores.label_logp[None]), scores.boundary_logp[None], scored, chunk_ids)


@pytest.mark.parametrize(
    ("gamma", "debias", "worked", "open_groups"),
    [(None, False, PLAIN, 0), (None, True, DEBIASED, 0), (-1.0, True, DEBIASED, 0), (0.1, True, MERGED, 1)],
)
@pytest.mark.parametrize("column", [0, 1, 2])
def test_hand_sized_case(
    gamma: float | None, debias: bool, worked: tuple[list[float], list[float]], open_groups: int, column: int
) -> None:
    temperature = [1, 5, 100][column]
    loss = alm_from_token_scores(
        hand_sized(TEACHER_LABEL, TEACHER_BOUNDARY, TEACHER_CHUNKS),
        hand_sized(STUDENT_LABEL, STUDENT_BOUNDARY, STUDENT_CHUNKS),
        5,
        temperature=temperature,
        gamma=gamma,
        debias=debias,
    )
    teacher_logp, cross_entropies = worked
    entropy = 0.0
    for logp in teacher_logp:
        p = math.exp(logp / temperature - 1e-6)
        entropy -= p * math.log(p) + (1 - p) * math.log(1 - p)

    assert loss.total.dtype == torch.float64
    assert loss.count.item() == len(teacher_logp)
    assert loss.total.item() + entropy == pytest.approx(cross_entropies[column] * len(teacher_logp), abs=5e-9)
    assert loss.metrics["teacher_logp"][0].item() == pytest.approx(sum(teacher_logp), rel=1e-6)
    assert loss.metrics["chunk_coverage"].tolist() == [4, 5]
    assert loss.metrics["token_coverage"].tolist() == [7, 7]
    assert loss.metrics["chunks_per_group"].tolist() == [4, len(teacher_logp)]
    assert loss.metrics["fused_share"].tolist() == [4 - len(teacher_logp), 4]
    assert loss.metrics["open_group_share"].tolist() == [open_groups, len(teacher_logp)]
    for name, tokens in (("teacher", 6), ("student", 7)):
        assert loss.metrics[f"{name}_tokens_per_chunk"].tolist() == [tokens, 4]
        assert loss.metrics[f"{name}_tokens_per_group"].tolist() == [tokens, len(teacher_logp)]


def random_side(
    seed: int, chunk_ids: Tensor, *, scored: Tensor | None = None, width: int = 4, vocabulary: int = 11
) -> tuple[AlignedScores, Tensor]:
    """Float32 scores of random hidden states over a random head, and the hidden states ``[B, T, D]``."""
    generator = torch.Generator().manual_seed(seed)
    B, T = chunk_ids.shape
    hidden = torch.randn(B, T, width, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator)
    ids = torch.randint(0, vocabulary, (B, T), generator=generator)
    scored = torch.ones_like(chunk_ids, dtype=torch.bool) if scored is None else scored
    num_chunks = int(chunk_ids.max()) + 1
    scores = token_scores(
        hidden.flatten(0, 1),
        weight,
        shift_labels(ids, scored).flatten(),
        boundary_mask=torch.arange(vocabulary) < 3,
        boundary_rows=chunk_end_mask(chunk_ids, num_chunks).flatten(),
    )
    side = AlignedScores(shift_scores(scores.label_logp.view(B, T)), scores.boundary_logp.view(B, T), scored, chunk_ids)
    return side, hidden


CHUNKS_TEACHER = torch.tensor([[0, 1, 1, 2, 3, 4, 4, 5], [0, 0, 1, 2, -1, 3, 4, -1], [-1, 0, 1, 2, 3, 3, -1, -1]])
CHUNKS_STUDENT = torch.tensor([[0, 1, 2, 3, 3, 4, 5], [0, 1, 1, 2, 3, 4, 4], [-1, 0, 0, 1, 2, 3, -1]])


def rows(side: AlignedScores, chosen: list[int] | slice) -> AlignedScores:
    return AlignedScores(*(field[chosen] for field in side))


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "tvd", "kl_temperature_limit", "k2", "k3"])
def test_identical_models_and_tokenizations_give_zero_and_no_gradient(divergence: str) -> None:
    teacher, _ = random_side(3, CHUNKS_TEACHER)
    student, hidden = random_side(3, CHUNKS_TEACHER)
    loss = alm_from_token_scores(teacher, student, 6, divergence=divergence)
    loss.total.backward()
    assert loss.count > 0
    assert abs(loss.total.item()) <= 1e-7
    assert hidden.grad.abs().max() <= 1e-7


@pytest.mark.parametrize("gamma", [None, 0.1, 0.3])
def test_micro_batches_and_the_order_of_rows_change_nothing(gamma: float | None) -> None:
    teacher, _ = random_side(0, CHUNKS_TEACHER)
    student, hidden = random_side(1, CHUNKS_STUDENT)

    def gradient(losses: list[LossOutput]) -> Tensor:
        mean = sum(loss.total for loss in losses) / sum(loss.count for loss in losses)
        return torch.autograd.grad(mean, hidden, retain_graph=True)[0]

    whole = alm_from_token_scores(teacher, student, 6, gamma=gamma)
    for parts in ([[0], [1], [2]], [[1, 2], [0]], [[2, 0, 1]]):
        losses = [alm_from_token_scores(rows(teacher, p), rows(student, p), 6, gamma=gamma) for p in parts]
        assert sum(loss.count for loss in losses) == whole.count
        torch.testing.assert_close(sum(loss.total for loss in losses), whole.total)
        torch.testing.assert_close(gradient(losses), gradient([whole]))
        for name, metric in whole.metrics.items():
            torch.testing.assert_close(sum(loss.metrics[name] for loss in losses), metric)


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3), st.permutations(range(3)), st.booleans())
@settings(max_examples=30, deadline=None)
def test_padding_and_permutation_change_nothing(
    teacher_padding: int, student_padding: int, extra_chunks: int, order: list[int], merge: bool
) -> None:
    def padded(side: AlignedScores, amount: int) -> AlignedScores:
        def pad(field: Tensor, filler: float) -> Tensor:
            return torch.nn.functional.pad(field, (0, amount), value=filler)[order]

        return AlignedScores(
            pad(side.label_logp, torch.nan),
            pad(side.boundary_logp, torch.nan),
            pad(side.scored, False),
            pad(side.chunk_ids, -1),
        )

    teacher, _ = random_side(0, CHUNKS_TEACHER)
    student, hidden = random_side(1, CHUNKS_STUDENT)
    gamma = 0.2 if merge else None
    plain = alm_from_token_scores(teacher, student, 6, gamma=gamma)
    changed = alm_from_token_scores(
        padded(teacher, teacher_padding), padded(student, student_padding), 6 + extra_chunks, gamma=gamma
    )
    assert changed.count == plain.count
    torch.testing.assert_close(changed.total, plain.total)
    torch.testing.assert_close(
        torch.autograd.grad(changed.total, hidden, retain_graph=True), torch.autograd.grad(plain.total, hidden)
    )
    for name, metric in plain.metrics.items():
        torch.testing.assert_close(changed.metrics[name], metric)


def test_gamma_below_zero_merges_nothing_and_from_one_on_everything() -> None:
    contiguous = torch.tensor([[0, 1, 1, 2, 3]])
    teacher, student = random_side(0, contiguous)[0], random_side(1, contiguous)[0]
    never = alm_from_token_scores(teacher, student, 4, gamma=-1.0)
    torch.testing.assert_close(never.total, alm_from_token_scores(teacher, student, 4, gamma=None).total)
    always = alm_from_token_scores(teacher, student, 4, gamma=1.0, debias=False)
    assert always.count == 1
    assert always.metrics["open_group_share"].tolist() == [1, 1]
    expected = alm_loss(teacher.label_logp[:, 1:].sum(1, keepdim=True), student.label_logp.sum(1, keepdim=True))
    torch.testing.assert_close(always.total, expected.total)


def test_a_limit_keeps_text_without_boundaries_from_becoming_one_chunk() -> None:
    contiguous = torch.tensor([[-1, 0, 1, 2, 3, 4]])
    teacher, student = random_side(0, contiguous)[0], random_side(1, contiguous)[0]
    loss = alm_from_token_scores(teacher, student, 5, gamma=1.0, max_group_chunks=2, debias=False)
    assert loss.metrics["chunks_per_group"].tolist() == [5, 3]
    assert loss.metrics["open_group_share"].tolist() == [3, 3]

    def pairs(side: AlignedScores) -> Tensor:
        return torch.nn.functional.pad(side.label_logp[:, 1:], (0, 1)).reshape(1, 3, 2).sum(2)

    torch.testing.assert_close(loss.total, alm_loss(pairs(teacher), pairs(student)).total)
    alone = alm_from_token_scores(teacher, student, 5, gamma=1.0, max_group_chunks=1)
    torch.testing.assert_close(alone.total, alm_from_token_scores(teacher, student, 5, gamma=None).total)


def test_chunks_add_up_to_the_sequence() -> None:
    side, _ = random_side(5, torch.tensor([[0, 1, 1, 2, 3, 3]]))
    torch.testing.assert_close(chunk_sums(side.label_logp, side.chunk_ids, 4).sum(), side.label_logp[:, 1:].sum())


def test_a_group_does_not_reach_over_tokens_without_a_chunk() -> None:
    ids = torch.tensor([[-1, 0, 1, -1, 2, 3]])
    teacher, student = random_side(0, ids)[0], random_side(1, ids)[0]
    assert alm_from_token_scores(teacher, student, 4, gamma=1.0).count == 2
    unbroken = torch.tensor([[-1, 0, 1, 2, 3, 3]])
    student = random_side(1, unbroken)[0]
    assert alm_from_token_scores(teacher, student, 4, gamma=1.0).count == 2  # a gap on one side is enough


def test_a_masked_token_takes_its_whole_chunk_out_on_both_sides() -> None:
    scored = torch.ones_like(CHUNKS_STUDENT, dtype=torch.bool)
    scored[0, 4] = False  # half of student chunk 3
    teacher, _ = random_side(0, CHUNKS_TEACHER)
    student, hidden = random_side(1, CHUNKS_STUDENT, scored=scored)
    loss = alm_from_token_scores(teacher, student, 6, gamma=None, debias=False)
    loss.total.backward()
    every = alm_from_token_scores(teacher, random_side(1, CHUNKS_STUDENT)[0], 6, gamma=None, debias=False)
    assert loss.count == every.count - 1
    assert hidden.grad[0, 2].eq(0).all()  # it predicts the other half


def test_no_valid_chunk_gives_zero_with_zero_gradient() -> None:
    student = torch.full((2, 3), torch.nan, requires_grad=True)
    loss = alm_loss(torch.zeros(2, 3), student, valid=torch.zeros(2, 3, dtype=torch.bool))
    loss.total.backward()
    assert loss.total == 0
    assert loss.count == 0
    assert student.grad.eq(0).all()


def test_log_probabilities_rounded_above_zero_count_as_zero() -> None:
    above = torch.tensor([[1e-3]])
    certain, likely = torch.zeros(1, 1), torch.tensor([[-1.0]])
    assert alm_loss(above, likely, temperature=1).total == alm_loss(certain, likely, temperature=1).total
    assert alm_loss(likely, above, temperature=1).total == alm_loss(likely, certain, temperature=1).total


def test_the_teacher_gets_no_gradient() -> None:
    teacher, student = (torch.full((1, 2), value, requires_grad=True) for value in (-1.0, -2.0))
    alm_loss(teacher, student).total.backward()
    assert teacher.grad is None
    assert student.grad.abs().min() > 0


def test_half_precision_is_computed_in_float32() -> None:
    teacher = torch.tensor([[-1.0]], dtype=torch.bfloat16)
    student = torch.tensor([[-2.0]], dtype=torch.bfloat16)
    loss = alm_loss(teacher, student)
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(0.055321765, abs=1e-7)


def test_a_model_that_gives_nan_gives_a_loss_of_nan() -> None:
    """Training finds such steps by their loss, and goes back; a score that nobody asked for is a mistake of ours."""
    teacher, student = random_side(0, CHUNKS_TEACHER)[0], random_side(1, CHUNKS_STUDENT)[0]
    broken = [torch.full_like(score, torch.nan) for score in (teacher.label_logp, teacher.boundary_logp)]
    loss = alm_from_token_scores(teacher._replace(label_logp=broken[0], boundary_logp=broken[1]), student, 6)
    assert loss.total.isnan()


def test_missing_boundary_scores_are_an_error_not_a_default() -> None:
    teacher, student = random_side(0, CHUNKS_TEACHER)[0], random_side(1, CHUNKS_STUDENT)[0]
    with pytest.raises(ValueError, match="needs the student's boundary_logp: give token_scores a boundary_mask"):
        alm_from_token_scores(teacher, student._replace(boundary_logp=None), 6)
    unasked = teacher._replace(boundary_logp=torch.full_like(teacher.boundary_logp, torch.nan))
    with pytest.raises(ValueError, match="the teacher's boundary_logp is NaN at the end of a valid chunk"):
        alm_from_token_scores(unasked, student, 6, debias=False)
    without = alm_from_token_scores(
        teacher._replace(boundary_logp=None), student._replace(boundary_logp=None), 6, gamma=None, debias=False
    )
    assert without.count > 0
    # Merging asks the teacher alone.
    merged = alm_from_token_scores(teacher, student._replace(boundary_logp=None), 6, gamma=0.2, debias=False)
    torch.testing.assert_close(merged.total, alm_from_token_scores(teacher, student, 6, gamma=0.2, debias=False).total)


def test_arguments_that_do_not_fit_are_refused() -> None:
    logp = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="unknown divergence 'KL'; known: kl, reverse_kl, tvd"):
        alm_loss(logp, logp, divergence="KL")
    with pytest.raises(ValueError, match="temperature is 0; it must be positive"):
        alm_loss(logp, logp, temperature=0)
    with pytest.raises(ValueError, match=r"must have one shape \[B, C\]"):
        alm_loss(logp, torch.zeros(1, 3))
