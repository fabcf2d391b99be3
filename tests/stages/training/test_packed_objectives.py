"""What windows of a batch have in common does not enter a loss: packed into rows, they give what each gives alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from objective_world import World, evaluate, hidden_states, make_world
from torch import Tensor

from losses.output import LossOutput
from stages.objectives.capabilities import CAPABILITIES
from stages.training.data.batch import Batch, collate_packed
from stages.training.data.layout import empty_like
from stages.training.objectives import OBJECTIVES, Objective

ONE_VOCABULARY = {each.objective for each in CAPABILITIES if each.vocabularies in ("identical", "subset")}
# Options beside the defaults that look at more than one chunk of a text, or pair positions otherwise.
VARIANTS = [
    ("alm", {"gamma": 0.999}),  # fuses whatever is adjacent
    ("alm", {"gamma": 0.999, "max_group_chunks": 2}),
    ("alm", {"debias": False, "gamma": None}),
    ("dskd", {"alignment": "cma", "projectors": "random"}),
    ("gold", {"merge": "observed"}),
    ("multilevel_ot", {"positions": "paired"}),
    ("uld", {"positions": "paired"}),
    ("xtoken", {"chunks": "chain_rule"}),
    ("hidden_states", {"layers": "all"}),
]
CASES = [(name, {}) for name in sorted(OBJECTIVES)] + VARIANTS


@pytest.fixture(scope="module")
def worlds(tiny_tokenizer_dirs) -> dict[bool, World]:
    """Two tokenizers, and one for both models; short windows, so that there are several."""
    first, second = tiny_tokenizer_dirs
    return {same: make_world(first, first if same else second, width=5, window_tokens=20) for same in (False, True)}


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
def placed(request, worlds) -> tuple[World, Objective]:
    name, options = request.param
    world = worlds[name in ONE_VOCABULARY]
    return world, world.build(name, **options)


def in_rows(world: World) -> Batch:
    """All windows in two rows, of different lengths on either side."""
    windows = world.windows
    assert len(windows) >= 5
    return collate_packed([windows[:3], windows[3:]])


def states(world: World, batch: Batch) -> Tensor:
    return hidden_states(world, batch, "student", seed=2).requires_grad_()


def by_window(batch: Batch, values: Tensor) -> Tensor:
    """``values [B, T, ...]`` at all tokens of the student, window by window."""
    window = batch.student.window
    return torch.cat([values[window == number] for number in range(batch.student.num_windows)])


def assert_same(found: LossOutput, expected: LossOutput) -> None:
    assert int(found.count) == int(expected.count) > 0
    torch.testing.assert_close(found.total, expected.total, rtol=1e-9, atol=1e-11)
    assert found.metrics.keys() == expected.metrics.keys()
    for name, pair in found.metrics.items():
        torch.testing.assert_close(pair, expected.metrics[name], rtol=1e-6, atol=1e-9, msg=name)


def test_packed_windows_give_the_loss_and_the_gradient_of_padded_ones(placed):
    world, objective = placed
    alone, together = world.batch(), in_rows(world)
    outputs, gradients = [], []
    for batch in (alone, together):
        hidden = states(world, batch)
        outputs.append(evaluate(world, objective, batch, student_hidden=hidden))
        gradients.append(by_window(batch, torch.autograd.grad(outputs[-1].total, hidden)[0]))
    assert_same(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-11)


def test_windows_that_fill_up_a_batch_change_nothing(placed):
    world, objective = placed
    whole = evaluate(world, objective, world.batch(), student_hidden=states(world, world.batch()))
    filled = world.batch([*world.windows, empty_like(world.windows[0])])
    assert_same(evaluate(world, objective, filled, student_hidden=states(world, filled)), whole)


def test_a_batch_of_fillers_has_gradients_of_zero_where_others_have_some(placed):
    # A process with nothing to learn must take part in reducing every gradient that the others have.
    world, objective = placed
    reached = []
    for batch in (world.batch(), world.batch([empty_like(world.windows[0])])):
        weight = world.weights["student"].clone().requires_grad_()
        hidden = states(world, batch)
        output = evaluate(world, objective, batch, student_hidden=hidden, student_weight=weight)
        trained = [hidden, weight] + ([*objective.auxiliary.parameters()] if objective.auxiliary else [])
        found = torch.autograd.grad(output.total, trained, allow_unused=True)
        reached.append([each is not None for each in found])
    assert (float(output.total.detach()), int(output.count)) == (0, 0)
    assert all(each is None or each.count_nonzero() == 0 for each in found)
    assert reached[0] == reached[1]


def test_what_a_packed_row_does_not_tell_is_not_known(worlds):
    """The windows of a row are told apart by their positions alone: without them, the pairing goes wrong."""
    world = worlds[False]
    objective = world.build("uld", positions="paired")
    batch = in_rows(world)
    sides = {
        side: replace(getattr(batch, side), positions=torch.arange(getattr(batch, side).ids.shape[1]).repeat(2, 1))
        for side in ("teacher", "student")
    }
    hidden = {f"{side}_hidden": hidden_states(world, batch, side, seed=1) for side in sides}
    right = evaluate(world, objective, batch, **hidden)
    wrong = evaluate(world, objective, replace(batch, **sides), **hidden)
    assert float(wrong.total) != pytest.approx(float(right.total), rel=1e-3)
