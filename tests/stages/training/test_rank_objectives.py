"""ULD, GOLD and MultiLevelOT in the engine, with options that are not the defaults."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from objective_world import World, evaluate, hidden_states, make_world
from pydantic import ValidationError

from alignment.byte_view import ByteView
from stages.objectives import LossEntry
from stages.stage import StageError

OPTIONS = [
    ("uld", {"positions": "paired"}),
    ("uld", {"top_k": 20}),
    ("gold", {"merge": "observed"}),
    ("gold", {"beta": 0.0, "common_weight": 1.0, "rest_weight": 0.5}),
    ("multilevel_ot", {"positions": "paired", "k": 5, "sinkhorn_weight": 2.0, "iterations": 3}),
]


@pytest.fixture(scope="module")
def worlds(tiny_tokenizer_dirs) -> dict[str, World]:
    first, second = tiny_tokenizer_dirs
    return {"pair": make_world(first, second), "identical": make_world(first, first, width=5)}


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_the_gradient_is_that_of_finite_differences(worlds, name, options):
    world = worlds["pair"]
    objective, batch = world.build(name, **options), world.batch()
    hidden = hidden_states(world, batch, "student", seed=2).requires_grad_()
    (found,) = torch.autograd.grad(evaluate(world, objective, batch, student_hidden=hidden).total, hidden)
    direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3), dtype=hidden.dtype)
    step = 1e-6 * direction
    with torch.no_grad():
        above, below = (
            float(evaluate(world, objective, batch, student_hidden=hidden + moved).total) for moved in (step, -step)
        )
    assert (above - below) / 2e-6 == pytest.approx(float((found * direction).sum()), rel=2e-5)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_micro_batches_add_up_and_count_as_announced(worlds, name, options):
    world = worlds["pair"]
    objective = world.build(name, **options)
    whole = evaluate(world, objective, world.batch())
    parts = [evaluate(world, objective, world.batch([window])) for window in world.windows]
    assert float(sum(part.total for part in parts)) == pytest.approx(float(whole.total), rel=1e-9)
    assert sum(part.count for part in parts) == whole.count == objective.statistics(world.batch(), None)[0]
    for metric, pair in whole.metrics.items():
        torch.testing.assert_close(sum(part.metrics[metric] for part in parts), pair)


@pytest.mark.parametrize(("name", "options"), [("uld", {"positions": "paired"}), ("gold", {"merge": "observed"})])
def test_no_loss_at_equality(worlds, name, options):
    world = worlds["identical"]
    batch = world.batch()
    same = hidden_states(world, batch, "teacher", seed=1)
    output = evaluate(world, world.build(name, **options), batch, teacher_hidden=same, student_hidden=same)
    assert output.count > 0
    assert output.total == 0


@pytest.mark.parametrize("name", ["uld", "gold", "multilevel_ot"])
def test_what_is_compared_is_reported(worlds, name):
    pair, identical = (
        evaluate(world, world.build(name), world.batch()) for world in (worlds["pair"], worlds["identical"])
    )
    assert identical.metrics["token_coverage"].tolist() == [identical.count, identical.count]
    compared, scored = pair.metrics["token_coverage"].tolist()
    assert 0 < compared <= scored


def test_the_shares_of_the_vocabulary_are_golds_weights(worlds):
    """A teacher all of whose tokens are shared has nothing left for the second term but the student's own tokens."""
    world = worlds["pair"]
    batch = world.batch()
    whole = evaluate(world, world.build("gold"), batch)
    parts = [
        evaluate(world, world.build("gold", common_weight=c, rest_weight=r), batch).total for c, r in ((1, 0), (0, 1))
    ]
    teacher, student = world.pair.teacher.view, world.pair.student.view
    spelled = {student.token_bytes(token) for token in range(student.vocab_size)} - {None}
    shared = sum(teacher.token_bytes(token) in spelled for token in range(teacher.vocab_size))
    stops = 1  # both end a text with a special token
    share = (shared + stops) / teacher.vocab_size
    torch.testing.assert_close(whole.total, share * parts[0] + (1 - share) * parts[1])


def test_gold_refuses_vocabularies_that_share_nothing(worlds):
    pair = worlds["pair"].pair
    foreign = replace(pair.teacher, view=ByteView.from_token_bytes([b"\xff\xfe", b"\xfe\xff"]), roles={})
    with pytest.raises(StageError, match="share no token"):
        replace(worlds["pair"], pair=replace(pair, teacher=foreign)).build("gold")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"gold": {"common_weight": 0.5}}, "given together"),
        ({"gold": {"common_weight": 0, "rest_weight": 0}}, "nothing is left"),
        ({"gold": {"beta": 1.5}}, "less than or equal to 1"),
        ({"uld": {"top_k": 0}}, "greater than or equal to 1"),
        ({"uld": {"positions": "any"}}, "'aligned' or 'paired'"),
        ({"multilevel_ot": {"regularization": 0.01}}, "greater than or equal to 0.05"),
    ],
)
def test_options_out_of_range_are_refused(entry, message):
    with pytest.raises(ValidationError, match=message):
        LossEntry.model_validate(entry)
