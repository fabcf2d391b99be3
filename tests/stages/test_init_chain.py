"""The chain of methods on one tensor: who is asked for which rows, what is rejected, what is written down."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from init_world import make_task, make_transplant
from torch import Tensor

from alignment.initializers.rows import RowBlock, SparseRows
from stages.initialisation.chain import failed_rows, make_rows
from stages.initialisation.overrides import override_rows
from stages.initialisation.task import Estimate
from stages.initialisation.tasks import within
from stages.stage import StageError, StageInterrupted

XYZ, ABCD, HGH = 12, 3, 8
"""Target ids of init_world that the source has no token for; the first cannot be spelled either."""


class Constant:
    """A method that gives every id in ``known`` one value, and remembers what it was asked for."""

    def __init__(self, value: float, known: set[int] | None = None, width: int = 6) -> None:
        self.value, self.known, self.width = value, known, width
        self.asked: list[int] = []
        self.fitted = 0

    def estimate(self, new_rows: int) -> Estimate:
        return Estimate(0, 0.0)

    def fit(self) -> None:
        self.fitted += 1

    def rows(self, target_ids: Tensor) -> RowBlock:
        self.asked += target_ids.tolist()
        made = torch.tensor([self.known is None or token in self.known for token in target_ids.tolist()])
        values = torch.full((len(target_ids), self.width), self.value)
        return RowBlock(values, made, {"asked": target_ids.float()})


class FromRowZero(Constant):
    """The first source row, twice over, as weights."""

    def rows(self, target_ids: Tensor) -> RowBlock:
        indices = torch.zeros(len(target_ids), 1, dtype=torch.int64)
        weights = torch.full((len(target_ids), 1), 2.0)
        return RowBlock(SparseRows(indices, weights), torch.ones(len(target_ids), dtype=torch.bool))


def test_it_is_said_which_methods_made_nothing_and_whose_rows_were_rejected():
    methods = {"idle": Constant(1.0, set()), "wild": Constant(1e6, {ABCD, XYZ}), "mean": Constant(0.5)}
    methods["never asked"] = Constant(0.5)
    task = make_task()
    made = make_rows(task, methods, max_norm=3.0)
    assert made.remarks(task.transplant.target) == [
        "idle could make none of the rows: the next method made them",
        f"2 rows of wild are not finite or too long: the next method made them: 'abcd' ({ABCD}), 'xyz' ({XYZ})",
    ]
    made = make_rows(task, {"some": Constant(0.5, {ABCD}), "mean": Constant(0.5)})
    assert made.remarks(task.transplant.target) == []


def test_copies_are_bitwise_and_each_method_is_asked_only_for_what_is_left():
    task = make_task(dtype=torch.bfloat16)
    first, second, third = Constant(1.0, {ABCD}), Constant(2.0), Constant(3.0)
    made = make_rows(task, {"first": first, "second": second, "third": third})
    new = made.new.nonzero().flatten().tolist()
    alignment = task.alignment
    for token in range(alignment.target_size):
        if token not in new:
            (source,) = alignment.pieces_of(token)
            assert torch.equal(made.values[token], task.rows[source])
    assert sorted(first.asked) == new
    assert sorted(second.asked) == [token for token in new if token != ABCD]
    assert (third.asked, third.fitted) == ([], 0)
    assert made.values[ABCD].tolist() == [1.0] * 6
    assert made.values[XYZ].tolist() == [2.0] * 6
    assert made.methods[made.method[ABCD]] == "first"
    assert made.counts == {"copied": 16 - len(new), "first": 1, "second": len(new) - 1, "third": 0}
    assert made.diagnostics["asked"][XYZ] == XYZ
    assert np.isnan(made.diagnostics["asked"][0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_rows_that_are_not_finite_or_far_too_long_go_to_the_next_method(value):
    made = make_rows(make_task(), {"wild": Constant(value), "tame": Constant(0.5)}, max_norm=3.0)
    assert made.rejected["wild"] == made.new.nonzero().flatten().tolist() != []
    assert (made.values[made.new] == 0.5).all()


def test_rows_of_the_last_method_may_have_any_length_but_must_be_finite():
    task = make_task()
    made = make_rows(task, {"mean": Constant(0.5)}, max_norm=1e-6)
    assert (made.values[made.new] == 0.5).all()
    assert made.remarks(task.transplant.target) == []
    with pytest.raises(AssertionError, match="unmade"):
        make_rows(task, {"mean": Constant(float("nan"))}, max_norm=1e-6)


def test_long_rows_pass_where_no_limit_is_set():
    made = make_rows(make_task(), {"wild": Constant(1e6)}, max_norm=None)
    assert (made.values[made.new] == 1e6).all()


def test_a_bias_follows_the_weights_of_its_rows_and_takes_the_mean_where_there_are_none():
    task = make_task()
    bias = torch.arange(16.0)[:, None] + 1
    made = make_rows(task, {"zero": FromRowZero(0.0)}, followers={"bias": bias})
    assert (made.followers["bias"][made.new] == 2 * bias[0]).all()
    assert made.followers["bias"][1] == bias[0]  # target id 1 is source id 0
    dense = make_rows(task, {"constant": Constant(1.0)}, followers={"bias": bias})
    assert (dense.followers["bias"][dense.new] == bias.mean()).all()


def test_without_exact_copies_only_special_tokens_keep_their_rows():
    transplant = make_transplant()
    task = make_task(transplant)
    made = make_rows(task, {"constant": Constant(1.0)}, copy_exact=False)
    assert not made.counts["copied"]  # byte strings without a name: nothing says that the two specials correspond
    assert (made.values == 1.0).all()


def test_a_stage_that_is_asked_to_stop_makes_no_more_rows():
    transplant = make_transplant()
    object.__setattr__(transplant, "should_stop", lambda: True)
    with pytest.raises(StageInterrupted):
        make_rows(make_task(transplant), {"constant": Constant(1.0)})


def test_a_last_method_that_leaves_rows_is_a_fault_of_the_program():
    with pytest.raises(AssertionError, match="left 1 rows"):
        make_rows(make_task(), {"partial": Constant(1.0, {ABCD, 4, HGH, 11})})


def test_overrides_take_the_mean_of_the_named_rows_in_every_tensor():
    transplant = make_transplant()
    task = make_task(transplant)
    bias = torch.arange(16.0)[:, None]
    made = make_rows(task, {"constant": Constant(1.0)}, followers={"bias": bias})
    ids, weights = override_rows(transplant.source, transplant.target, {"xyz": ["a", "cd"], "a": "b"}, 16)
    made.set_rows(ids, weights, task.rows, {"bias": bias})
    torch.testing.assert_close(made.values[XYZ], (task.rows[0] + task.rows[10]) / 2)
    assert torch.equal(made.values[1], task.rows[1])
    assert made.followers["bias"][XYZ] == 5.0
    assert made.counts["overridden"] == 2


def test_an_override_of_a_token_that_does_not_exist_is_refused():
    transplant = make_transplant()
    with pytest.raises(StageError, match=r"override: tokenizer .* has no token 'abz'"):
        override_rows(transplant.source, transplant.target, {"a": "abz"}, 16)


def test_tokens_that_need_rows_beyond_a_shorter_tensor_have_no_counterpart_there():
    alignment = make_transplant().alignment
    short = within(alignment, 9)  # the single letters and the space
    for token in range(alignment.target_size):
        pieces = alignment.pieces_of(token)
        kept = short.pieces_of(token)
        assert kept.tolist() == (pieces.tolist() if (pieces < 9).all() else [])
    assert within(alignment, 99) is alignment


def test_rows_that_are_not_finite_are_found():
    rows = torch.zeros(40_000, 2, dtype=torch.bfloat16)
    rows[[3, 20_000], [0, 1]] = torch.tensor([float("nan"), float("inf")], dtype=torch.bfloat16)
    assert failed_rows(rows) == [3, 20_000]
