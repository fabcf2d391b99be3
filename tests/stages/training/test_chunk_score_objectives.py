"""What the adapters of chunk scores and hidden states decide by themselves; the rest is in test_every_objective."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from objective_world import World, evaluate, hidden_states, make_world

from stages.stage import StageError
from stages.training.models import Reads


@pytest.fixture(scope="module")
def pair(tiny_tokenizer_dirs) -> World:
    return make_world(*tiny_tokenizer_dirs)


@pytest.fixture(scope="module")
def finer(tiny_tokenizer_dirs) -> World:
    """A student with shorter tokens than the teacher's, so that chunks hold several of them."""
    first, second = tiny_tokenizer_dirs
    return make_world(second, first)


@pytest.fixture(scope="module")
def one_width(tiny_tokenizer_dirs) -> World:
    return make_world(*tiny_tokenizer_dirs, width=5)


@pytest.mark.parametrize(
    ("options", "teacher", "student"),
    [
        ({}, True, True),
        ({"debias": False}, True, False),
        ({"gamma": None}, True, True),
        ({"gamma": None, "debias": False}, False, False),
    ],
)
def test_alm_asks_for_boundaries_only_where_it_reads_them(
    pair: World, options: dict, teacher: bool, student: bool
) -> None:
    objective = pair.build("alm", **options)
    assert (objective.teacher_reads, objective.student_reads) == (Reads(True, teacher), Reads(True, student))
    assert evaluate(pair, objective, pair.batch()).count > 0


def test_the_limit_of_merged_chunks_reaches_the_loss(pair: World) -> None:
    batch = pair.batch()
    counts = [
        int(evaluate(pair, pair.build("alm", gamma=1.0, max_group_chunks=limit), batch).count)
        for limit in (None, 4, 2, 1)
    ]
    assert counts == sorted(counts)
    assert counts[0] == len(pair.windows)
    assert counts[-1] == int(evaluate(pair, pair.build("alm", gamma=None), batch).count)


@pytest.mark.parametrize("distance", ["l2", "l1"])
@pytest.mark.parametrize("channelwise", [True, False])
def test_hidden_states_against_a_plain_loop_over_chunks(one_width: World, distance: str, channelwise: bool) -> None:
    """Pairs of layers; the stand-in model's layer n is its last one times n + 2."""
    batch = one_width.batch()
    objective = one_width.build("hidden_states", layers=[[0, 1], -1], distance=distance, channelwise=channelwise)
    found = evaluate(one_width, objective, batch)

    teacher = hidden_states(one_width, batch, "teacher", seed=1)
    student = hidden_states(one_width, batch, "student", seed=2)
    size = torch.square if distance == "l2" else torch.abs
    total = 0.0
    for teacher_factor, student_factor in ((2, 3), (1, 1)):
        states = []
        for window in range(len(one_width.windows)):
            for chunk in range(batch.num_chunks):
                ends = [(side.chunk[window] == chunk).nonzero().flatten() for side in (batch.teacher, batch.student)]
                if len(ends[1]):
                    states.append((teacher[window, ends[0][-1]], student[window, ends[1][-1]]))
        t, s = (torch.stack(column) for column in zip(*states, strict=True))
        t, s = teacher_factor * t, student_factor * s
        scale = size(t).mean(0) if channelwise else size(t).mean()
        total += float((size(s - t) / scale).mean(1).sum()) / 2
        assert found.count == len(states)
    assert float(found.total) == pytest.approx(total, rel=1e-6)


def test_a_projection_joins_models_of_different_widths(pair: World) -> None:
    with pytest.raises(StageError, match=r"teacher has 6, the student 5: set hidden_states.projection: true"):
        pair.build("hidden_states")
    objective = pair.build("hidden_states", layers=[0, -1], projection=True)
    assert [tuple(each.weight.shape) for each in objective.auxiliary] == [(6, 5), (6, 5)]
    loss = evaluate(pair, objective, pair.batch())
    loss.total.backward()
    for parameter in objective.auxiliary.parameters():
        assert parameter.grad.abs().sum() > 0


def test_the_projection_depends_on_the_seed_alone(pair: World) -> None:
    first, again = (pair.build("hidden_states", projection=True).auxiliary[0].weight for _ in range(2))
    other = replace(pair, pair=replace(pair.pair, seed=8)).build("hidden_states", projection=True).auxiliary[0].weight
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_projection_that_fits_leaves_no_loss(pair: World) -> None:
    objective = pair.build("hidden_states", projection=True)
    batch = pair.batch()
    student = hidden_states(pair, batch, "student", seed=2)
    same_text = replace(batch, teacher=batch.student)
    loss = evaluate(pair, objective, same_text, teacher_hidden=objective.auxiliary[0](student), student_hidden=student)
    assert float(loss.total.detach()) == pytest.approx(0, abs=1e-12)


def test_all_layers_need_models_of_one_depth(one_width: World) -> None:
    objective = one_width.build("hidden_states", layers="all")
    assert objective.teacher_reads.layers == objective.student_reads.layers == (0, 1, 2)
    facts = one_width.pair
    deeper = replace(one_width, pair=replace(facts, teacher=replace(facts.teacher, layers=5)))
    with pytest.raises(StageError, match=r"teacher has 5 hidden states, the student 3: name pairs .* as \[\[4, 2\]\]"):
        deeper.build("hidden_states", layers="all")
    assert deeper.build("hidden_states", layers=[[4, 2]]).teacher_reads.layers == (4,)
    with pytest.raises(StageError, match=r"hidden_states.layers: the student has hidden states 0 to 2, not 4"):
        deeper.build("hidden_states", layers=[4])


def test_dpca_leaves_out_what_its_options_say(finer: World) -> None:
    batch = finer.batch()
    everything = evaluate(finer, finer.build("dpca", max_chunk_tokens=None, advantage_clip=None), batch)
    single = evaluate(finer, finer.build("dpca", max_chunk_tokens=1), batch)
    assert everything.metrics["clipped_share"][0] == everything.metrics["too_long_share"][0] == 0
    assert 0 < single.count < everything.count
    assert single.count + single.metrics["too_long_share"][0] == everything.count
    proportional = evaluate(
        finer, finer.build("dpca", shares="multiplicative", max_chunk_tokens=None, advantage_clip=None), batch
    )
    assert proportional.count == everything.count
    assert float(proportional.total) > float(everything.total)  # equal shares are the least squares


def test_dpca_with_chunks_of_several_tokens_follows_the_gradient_of_its_value(finer: World) -> None:
    batch = finer.batch()
    objective = finer.build("dpca")
    hidden = hidden_states(finer, batch, "student", seed=2).requires_grad_()
    loss = evaluate(finer, objective, batch, student_hidden=hidden)
    (gradient,) = torch.autograd.grad(loss.total, hidden)
    direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3), dtype=hidden.dtype)
    plus, minus = (
        float(evaluate(finer, objective, batch, student_hidden=hidden.detach() + step * direction).total)
        for step in (1e-6, -1e-6)
    )
    assert (plus - minus) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_simct_compares_single_shared_tokens_as_they_are_and_all_else_as_units(finer: World) -> None:
    batch = finer.batch()
    loss = evaluate(finer, finer.build("simct"), batch)
    sides = [(batch.teacher, finer.pair.teacher.view), (batch.student, finer.pair.student.view)]
    spelled = []
    for window in range(len(finer.windows)):
        for chunk in range(batch.num_chunks):
            if (
                any(side.chunk[window, 0] == chunk for side, _ in sides)
                or not (batch.student.chunk[window] == chunk).any()
            ):
                continue  # nothing predicts a window's first token
            spelled.append(
                [[view.token_bytes(t) for t in side.ids[window][side.chunk[window] == chunk]] for side, view in sides]
            )
    units = [pieces for pieces in spelled if max(map(len, pieces)) > 1]
    assert loss.metrics["unit_share"].tolist() == [len(units), len(spelled)]
    assert 0 < len(units) < len(spelled) == loss.count
    warmer = evaluate(finer, finer.build("simct", temperature=3.0, divergence="kl"), batch)
    assert warmer.count == loss.count
    assert float(warmer.total) != pytest.approx(float(loss.total))
