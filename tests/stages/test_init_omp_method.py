"""The omp method: donor rows in, weights over the student's rows out, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from init_world import TARGET, make_task, make_transplant
from pydantic import TypeAdapter, ValidationError

from stages.initialisation.methods import build_method
from stages.initialisation.task import Method, RowTask
from stages.initializers import Chain, InitializerOptions
from stages.stage import StageError, StageInterrupted

ALL = torch.arange(len(TARGET))
VARIANTS = [{}, {"select": "cosine"}, {"centre": True}, {"ridge": 0.1}]


def options_of(**written: object) -> InitializerOptions:
    (options,) = TypeAdapter(Chain).validate_python({"method": "omp", **written})
    return options


def fitted(task: RowTask, **written: object) -> Method:
    method = build_method(options_of(**{"k": 3, **written}), task)
    method.fit()
    return method


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_depends_on_nothing_but_its_token(variant: dict[str, object]) -> None:
    task = make_task(donor_width=5)
    method = fitted(task, **variant)
    whole = method.rows(ALL).values(task.rows)
    assert whole.shape == (len(TARGET), 6)
    assert method.rows(ALL[:0]).values(task.rows).shape == (0, 6)
    parts = [method.rows(ids).values(task.rows) for ids in ALL.split(3)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
    flipped = replace(
        make_task(make_transplant(target=TARGET[::-1]), donor_rows=task.donor_rows.flip(0)), rows=task.rows
    )
    again = fitted(flipped, **variant).rows(ALL).values(task.rows)
    torch.testing.assert_close(again, whole.flip(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_low_precision_is_only_rounding(variant: dict[str, object]) -> None:
    low = make_task(donor_width=5, dtype=torch.bfloat16)
    exact = replace(low, rows=low.rows.float(), donor_rows=low.donor_rows.float())
    made, expected = (fitted(task, **variant).rows(ALL).values(task.rows) for task in (low, exact))
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)


def test_the_donors_combinations_are_taken_of_the_students_rows() -> None:
    task = make_task(donor_width=5)
    block = fitted(task).rows(ALL)
    assert set(block.rows.indices[block.rows.indices >= 0].tolist()) <= set(task.anchor_source.tolist())
    target_of = dict(zip(task.anchor_source.tolist(), task.anchor_target.tolist(), strict=True))
    for token in range(len(TARGET)):
        sources, weights = block.rows.indices[token].numpy(), block.rows.weights[token].double().numpy()
        kept = sources >= 0
        donor = task.donor_rows[[target_of[source] for source in sources[kept]]].double().numpy()
        wanted = task.donor_rows[token].double().numpy()
        np.testing.assert_allclose(weights[kept], np.linalg.lstsq(donor.T, wanted, rcond=None)[0], atol=1e-5)
        residual = np.linalg.norm(wanted - weights[kept] @ donor) / np.linalg.norm(wanted)
        assert block.diagnostics["residual"][token].item() == pytest.approx(residual, abs=1e-5)
        assert block.diagnostics["atoms"][token] == kept.sum()


def test_anchors_are_made_of_themselves() -> None:
    task = make_task(donor_width=7)
    block = fitted(task, select="cosine").rows(task.anchor_target)
    torch.testing.assert_close(block.values(task.rows), task.rows[task.anchor_source], atol=1e-5, rtol=1e-5)
    assert (block.diagnostics["atoms"] == 1).all()


def test_centred_rows_are_combinations_of_differences_from_the_mean() -> None:
    task = make_task(donor_width=5)
    shifted = replace(task, rows=task.rows + 4, donor_rows=task.donor_rows - 2)
    centred, moved = (fitted(given, centre=True).rows(ALL).values(given.rows) for given in (task, shifted))
    torch.testing.assert_close(moved, centred + 4, atol=1e-4, rtol=1e-4)
    own, donor = task.rows[task.anchor_source].double(), task.donor_rows[task.anchor_target].double()
    atoms, targets = donor - donor.mean(dim=0), task.donor_rows.double() - donor.mean(dim=0)
    best = (targets @ atoms.T).abs().argmax(dim=1)
    share = (targets * atoms[best]).sum(dim=1, keepdim=True) / atoms[best].square().sum(dim=1, keepdim=True)
    expected = share * (own[best] - own.mean(dim=0)) + own.mean(dim=0)
    made = fitted(task, centre=True, k=1).rows(ALL).values(task.rows)
    torch.testing.assert_close(made, expected.float(), atol=1e-5, rtol=1e-5)


def test_a_token_without_a_donor_row_is_left_to_the_next_method() -> None:
    task = make_task(donor_width=5)
    has = torch.ones(len(TARGET), dtype=torch.bool)
    has[3] = False
    donor_rows = task.donor_rows.clone()
    donor_rows[3], donor_rows[12] = torch.nan, 0
    block = fitted(replace(task, donor_rows=donor_rows, donor_has=has)).rows(ALL)
    assert block.made.tolist() == [token not in (3, 12) for token in range(len(TARGET))]
    assert block.values(task.rows).isfinite().all()


def test_what_cannot_work_is_refused_before_anything_is_done() -> None:
    with pytest.raises(StageError, match=r"name such a model as models\.donor"):
        build_method(options_of(), make_task())
    task = make_task(donor_width=5)
    count = len(task.anchor_target)
    with pytest.raises(StageError, match=rf"omp needs {count + 1} tokens .* there are {count} "):
        build_method(options_of(k=count + 1), task)
    with pytest.raises(StageError, match=r"memory_gib: .* raise it or lower k"):
        build_method(options_of(k=3, memory_gib=0.01), task)


@pytest.mark.parametrize(
    "written", [{"k": 0}, {"select": "dot"}, {"ridge": -1}, {"stop_tol": 1}, {"memory_gib": 0}, {"steps": 3}]
)
def test_options_are_checked(written: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        options_of(**written)


def test_anchors_that_are_all_alike_cannot_be_centred() -> None:
    task = make_task(donor_width=5)
    donor_rows = task.donor_rows.clone()
    donor_rows[task.anchor_target] = 1.0
    with pytest.raises(StageError, match="omp: anchors hold zero rows"):
        fitted(replace(task, donor_rows=donor_rows), centre=True)


def test_the_stage_can_be_stopped() -> None:
    transplant = replace(make_transplant(), should_stop=lambda: True)
    with pytest.raises(StageInterrupted):
        fitted(make_task(transplant, donor_width=5)).rows(ALL)


def test_the_estimate_keeps_to_the_budget() -> None:
    estimate = build_method(options_of(k=3, memory_gib=0.5), make_task(donor_width=5)).estimate(10)
    assert 0 < estimate.memory_bytes <= 2**29
    assert estimate.operations > 0
