"""What every objective must hold to, run on all of them by their names: a new one is tested as soon as it is listed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from objective_world import World, evaluate, hidden_states, make_world, padded, without_scores
from torch import Tensor

from stages.objectives import LossEntry
from stages.objectives.capabilities import CAPABILITIES, GIVES, capability
from stages.training.data.batch import Batch
from stages.training.objectives import OBJECTIVES, Objective

ALL = sorted(OBJECTIVES)
DIVERGENCES = [each.objective for each in CAPABILITIES if each.divergence]
NEEDS_IDENTICAL = {each.objective for each in CAPABILITIES if each.vocabularies in ("identical", "subset")}
# Hidden states of different widths cannot be compared without a projection.
ONE_WIDTH = {"hidden_states"}
# They read hidden states alone.
WITHOUT_THE_HEAD = {"hidden_states", "byte_level"}
# It reads the student's head a second time, as a constant, which finite differences would see and gradients do not.
READS_A_FROZEN_HEAD = {"dskd"}
# Its gradient is that of an expectation over texts, not of the value that one text has.
GRADIENT_OF_AN_EXPECTATION = {"policy_gradient"}
# A random teacher expects no boundary: merging would leave one group a text.
OPTIONS: dict[str, dict] = {"alm": {"gamma": 0.0}}


@pytest.fixture(scope="module")
def worlds(tiny_tokenizer_dirs) -> dict[str, World]:
    first, second = tiny_tokenizer_dirs
    return {
        "pair": make_world(first, second),
        "one width": make_world(first, second, width=5),
        "identical": make_world(first, first, width=5),
    }


def place(worlds: dict[str, World], name: str) -> tuple[World, Objective]:
    """The objective in a world that it can work in."""
    world = worlds["identical" if name in NEEDS_IDENTICAL else "one width" if name in ONE_WIDTH else "pair"]
    return world, world.build(name, **OPTIONS.get(name, {}))


def gradient(
    world: World, objective: Objective, batch: Batch, hidden: Tensor | None = None, **options
) -> tuple[float, float, Tensor]:
    """Total, count, and the total's gradient in the student's hidden states."""
    hidden = hidden_states(world, batch, "student", seed=2) if hidden is None else hidden
    hidden = hidden.detach().requires_grad_()
    output = evaluate(world, objective, batch, student_hidden=hidden, **options)
    (found,) = torch.autograd.grad(output.total, hidden, allow_unused=True)
    return float(output.total.detach()), float(output.count), torch.zeros_like(hidden) if found is None else found


def test_the_table_the_options_and_the_arithmetic_name_the_same_objectives():
    assert {each.objective for each in CAPABILITIES} == set(OBJECTIVES) == set(LossEntry.model_fields)
    for each in CAPABILITIES:
        assert each.needs in GIVES["full"]


@pytest.mark.parametrize("name", ALL)
def test_padding_changes_nothing(worlds, name):
    world, objective = place(worlds, name)
    batch = world.batch()
    wide = Batch(student=padded(batch.student, 3), teacher=padded(batch.teacher, 5), num_chunks=batch.num_chunks + 4)
    total, count, found = gradient(world, objective, batch)
    wide_total, wide_count, wide_found = gradient(world, objective, wide)
    assert (wide_total, wide_count) == (pytest.approx(total, rel=1e-10), count)
    torch.testing.assert_close(wide_found[:, :-3], found, rtol=1e-8, atol=1e-12)
    assert wide_found[:, -3:].abs().max() == 0


@pytest.mark.parametrize("name", ALL)
def test_the_split_into_micro_batches_and_their_order_change_nothing(worlds, name):
    world, objective = place(worlds, name)
    batch = world.batch()
    whole, count, _ = gradient(world, objective, batch)
    parts = [world.batch([window]) for window in reversed(world.windows)]
    statistics = sum(_statistics(world, objective, part) for part in parts)
    torch.testing.assert_close(statistics, _statistics(world, objective, batch))
    outputs = [evaluate(world, objective, part, statistics=statistics) for part in parts]
    assert sum(float(output.total.detach()) for output in outputs) == pytest.approx(whole, rel=1e-9)
    assert sum(int(output.count) for output in outputs) == count == statistics[0]


def _statistics(world: World, objective: Objective, batch: Batch) -> Tensor:
    from objective_world import signals

    hidden = hidden_states(world, batch, "teacher", seed=1)
    return objective.statistics(batch, signals(world, batch, "teacher", objective.teacher_reads, hidden))


@pytest.mark.parametrize("name", ALL)
def test_nothing_to_learn_from_is_zero_with_finite_gradients(worlds, name):
    world, objective = place(worlds, name)
    total, count, found = gradient(world, objective, without_scores(world.batch()))
    assert (total, count) == (0, 0)
    assert found.abs().max() == 0


@pytest.mark.parametrize("name", ALL)
def test_metrics_have_the_same_names_without_any_unit(worlds, name):
    # Processes add their metrics up in one vector, in the order in which they come: one without units must agree.
    world, objective = place(worlds, name)
    batch = world.batch()
    assert [*evaluate(world, objective, without_scores(batch)).metrics] == [*evaluate(world, objective, batch).metrics]


@pytest.mark.parametrize("name", ALL)
def test_the_causal_shift(worlds, name):
    """What the model says after a text's last token is about nothing; what it says before the first one matters."""
    if "hidden_states" in name:
        pytest.skip("compares states, which no shift applies to")
    world, objective = place(worlds, name)
    if name == "alm":
        # Debiasing asks on purpose whether a boundary follows the last token.
        objective = world.build("alm", gamma=0.0, debias=False)
    batch = world.batch(world.windows[:1])
    _, _, found = gradient(world, objective, batch)
    last = int(batch.student.attention.sum()) - 1
    assert found[0, last].abs().max() == 0
    first_scored = int(batch.student.scored[0].nonzero()[0])
    assert found[0, first_scored - 1 :].abs().sum() > 0


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(worlds, name):
    world = worlds["identical"]
    objective = world.build(name, **OPTIONS.get(name, {}))
    batch = world.batch()
    same = hidden_states(world, batch, "teacher", seed=1)
    total, count, found = gradient(world, objective, batch, same, teacher_hidden=same)
    assert count > 0
    assert abs(total) / count < 1e-6
    assert found.abs().max() < 1e-6


@pytest.mark.parametrize("name", sorted(set(ALL) - GRADIENT_OF_AN_EXPECTATION))
def test_the_gradient_is_that_of_finite_differences(worlds, name):
    world, objective = place(worlds, name)
    batch = world.batch(world.windows[:1])
    hidden = hidden_states(world, batch, "student", seed=2)
    _, _, found = gradient(world, objective, batch, hidden)
    direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3), dtype=hidden.dtype)
    step = 1e-6

    def total(scale: float) -> float:
        return float(evaluate(world, objective, batch, student_hidden=hidden + scale * direction).total.detach())

    slope = (total(step) - total(-step)) / (2 * step)
    assert slope == pytest.approx(float((found * direction).sum()), rel=2e-5, abs=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_the_output_matrix_gets_its_gradient(worlds, name):
    world, objective = place(worlds, name)
    batch = world.batch(world.windows[:1])
    weight = world.weights["student"].clone().requires_grad_()
    output = evaluate(world, objective, batch, student_weight=weight)
    (found,) = torch.autograd.grad(output.total, weight, allow_unused=True) if output.total.requires_grad else (None,)
    if found is None:
        assert name in WITHOUT_THE_HEAD
        return
    assert found[-2:].abs().max() == 0  # padding rows
    if name in READS_A_FROZEN_HEAD | GRADIENT_OF_AN_EXPECTATION:
        return
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(4), dtype=weight.dtype)
    step = 1e-6

    def total(scale: float) -> float:
        moved = weight.detach() + scale * direction
        return float(evaluate(world, objective, batch, student_weight=moved).total)

    slope = (total(step) - total(-step)) / (2 * step)
    assert slope == pytest.approx(float((found * direction).sum()), rel=2e-5, abs=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_hidden_states_give_nearly_the_same_loss(worlds, name):
    world, objective = place(worlds, name)
    batch = world.batch()
    states = {
        f"{side}_hidden": hidden_states(world, batch, side, seed=seed).bfloat16()
        for side, seed in (("teacher", 1), ("student", 2))
    }
    exact = evaluate(world, objective, batch, **{key: value.double() for key, value in states.items()})
    half = {side: weight.bfloat16() for side, weight in world.weights.items()}
    rounded = replace(world, weights={side: weight.double() for side, weight in half.items()})
    exact = evaluate(rounded, objective, batch, **{key: value.double() for key, value in states.items()})
    if objective.auxiliary is not None:
        objective.auxiliary.bfloat16()
    found = evaluate(replace(world, weights=half), objective, batch, **states)
    assert found.count == exact.count
    assert float(found.total.detach()) == pytest.approx(float(exact.total.detach()), rel=0.03)


@pytest.mark.parametrize("name", [each.objective for each in CAPABILITIES if each.needs == "top_k"])
def test_a_truncated_teacher_is_enough_where_the_table_says_so(worlds, name):
    world, objective = place(worlds, name)
    total, count, found = gradient(world, objective, world.batch(), top_k=8)
    assert capability(name).cached
    assert count > 0
    assert torch.isfinite(torch.tensor(total))
    assert found.isfinite().all()
    assert found.abs().max() > 0
