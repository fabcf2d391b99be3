"""Methods that work in a donor's space: rows of anchors in, rows of new tokens out, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from init_world import TARGET, make_task, make_transplant
from pydantic import TypeAdapter, ValidationError

from stages.initialisation.methods import build_method
from stages.initialisation.task import Method, RowTask
from stages.initializers import Chain, InitializerOptions
from stages.stage import StageError

ALL = torch.arange(len(TARGET))
METHODS = [
    {"method": "knn", "k": 3},
    {"method": "knn", "k": 3, "weights": "least_squares", "metric": "cosine"},
    {"method": "knn", "k": 3, "weights": "distance"},
    {"method": "procrustes"},
    {"method": "procrustes", "scale": "norm"},
    {"method": "ridge_map"},
]


def options_of(written: object) -> InitializerOptions:
    (options,) = TypeAdapter(Chain).validate_python(written)
    return options


def fitted(written: object, task: RowTask) -> Method:
    method = build_method(options_of(written), task)
    method.fit()
    return method


def rotated_task(width: int = 6, donor_width: int = 6) -> RowTask:
    """A donor whose anchor rows are the student's in another basis."""
    task = make_task(width=width, donor_width=donor_width)
    basis = torch.linalg.qr(torch.randn(width, donor_width, generator=torch.Generator().manual_seed(8)))[0]
    donor_rows = task.donor_rows.clone()
    donor_rows[task.anchor_target] = task.rows[task.anchor_source] @ basis
    return replace(task, donor_rows=donor_rows)


@pytest.mark.parametrize("written", METHODS)
def test_a_row_depends_on_nothing_but_its_token(written: object) -> None:
    task = make_task(donor_width=5)
    method = fitted(written, task)
    whole = method.rows(ALL).values(task.rows)
    assert whole.shape == (len(TARGET), 6)
    assert method.rows(ALL[:0]).values(task.rows).shape == (0, 6)
    parts = [method.rows(ids).values(task.rows) for ids in ALL.split(3)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
    flipped = replace(
        make_task(make_transplant(target=TARGET[::-1]), donor_rows=task.donor_rows.flip(0)),
        rows=task.rows,
    )
    again = fitted(written, flipped).rows(ALL).values(task.rows)
    torch.testing.assert_close(again, whole.flip(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("written", METHODS)
def test_low_precision_is_only_rounding(written: object) -> None:
    low = make_task(donor_width=5, dtype=torch.bfloat16)
    exact = replace(low, rows=low.rows.float(), donor_rows=low.donor_rows.float())
    made, expected = (fitted(written, task).rows(ALL).values(task.rows) for task in (low, exact))
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("written", METHODS)
def test_a_token_without_a_donor_row_is_left_to_the_next_method(written: object) -> None:
    task = make_task(donor_width=5)
    has = torch.ones(len(TARGET), dtype=torch.bool)
    has[3] = False
    donor_rows = task.donor_rows.clone()
    donor_rows[3] = torch.nan
    task = replace(task, donor_rows=donor_rows, donor_has=has)
    block = fitted(written, task).rows(ALL)
    assert block.made.tolist() == has.tolist()
    assert block.values(task.rows).isfinite().all()


@pytest.mark.parametrize("written", METHODS[3:])
def test_a_donor_that_is_the_student_in_another_basis_gives_the_students_rows(written: dict[str, object]) -> None:
    task = rotated_task()
    written = {**written, "ridge": 1e-7} if written["method"] == "ridge_map" else written
    made = fitted(written, task).rows(task.anchor_target).values(task.rows)
    torch.testing.assert_close(made, task.rows[task.anchor_source], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_one_nearest_anchor_is_copied(metric: str) -> None:
    task = rotated_task()
    block = fitted({"method": "knn", "k": 1, "metric": metric, "weights": "distance"}, task).rows(task.anchor_target)
    assert torch.equal(block.values(task.rows), task.rows[task.anchor_source])
    torch.testing.assert_close(block.diagnostics["nearest_distance"], torch.zeros(len(task.anchor_target)))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_weights_by_distance_stay_between_the_anchors(metric: str) -> None:
    task = make_task(donor_width=5)
    block = fitted({"method": "knn", "k": 4, "metric": metric, "weights": "distance"}, task).rows(ALL)
    made, anchors = block.values(task.rows)[block.made], task.rows[task.anchor_source]
    assert len(made)
    assert (made >= anchors.amin(dim=0) - 1e-6).all()
    assert (made <= anchors.amax(dim=0) + 1e-6).all()


@pytest.mark.parametrize("weights", ["barycentric", "least_squares"])
def test_the_weights_rebuild_a_donor_row_that_the_neighbours_span(weights: str) -> None:
    task = rotated_task(width=3, donor_width=3)
    anchors = task.donor_rows[task.anchor_target]
    mixed = 0.5 * anchors[0] + 0.8 * anchors[1] - 0.3 * anchors[2]
    donor_rows = task.donor_rows.clone()
    donor_rows[3] = mixed
    task = replace(task, donor_rows=donor_rows)
    k = len(task.anchor_target)
    block = fitted({"method": "knn", "k": k, "weights": weights}, task).rows(torch.tensor([3]))
    expected = 0.5 * task.rows[task.anchor_source[0]] + 0.8 * task.rows[task.anchor_source[1]]
    expected -= 0.3 * task.rows[task.anchor_source[2]]
    torch.testing.assert_close(block.values(task.rows)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("written", METHODS)
def test_without_a_donor_or_enough_shared_tokens_the_method_is_refused_at_once(written: dict[str, object]) -> None:
    options = options_of(written)
    assert options.wanted_inputs == {"donor"}
    with pytest.raises(
        StageError, match=rf"{options.method} needs the rows of a model .* name such a model as models.donor"
    ):
        build_method(options, make_task())
    task = make_task(donor_width=5)
    few = replace(task, anchor_source=task.anchor_source[:1], anchor_target=task.anchor_target[:1])
    with pytest.raises(
        StageError, match=rf"{options.method} needs . tokens that student and donor share, .* are 1 that"
    ):
        build_method(options, few)


@pytest.mark.parametrize("written", [{"method": "knn", "k": 0}, {"method": "ridge_map", "ridge": 0}])
def test_options_without_sense_are_refused(written: object) -> None:
    with pytest.raises(ValidationError, match="greater than"):
        options_of(written)
