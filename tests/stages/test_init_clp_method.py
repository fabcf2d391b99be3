"""CLP and CLP+ at work on a tensor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from init_world import TARGET, make_task
from pydantic import TypeAdapter

from stages.initialisation.methods import build_method
from stages.initialisation.task import RowTask
from stages.initializers import Chain
from stages.stage import StageError

CLP = ("clp", "clp_plus")
XYZ = TARGET.index(b"xyz")


def build(task: RowTask, method: str):
    """The fitted method."""
    (options,) = TypeAdapter(Chain).validate_python([method])
    built = build_method(options, task)
    built.fit()
    return built


@pytest.mark.parametrize("method", CLP)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_donor_methods_follow_the_cosines_in_the_donors_matrix(method, dtype):
    donor = torch.randn(len(TARGET), 9, generator=torch.Generator().manual_seed(1)).abs().to(dtype)
    task = make_task(dtype=dtype, donor_rows=donor)
    block = build(task, method).rows(torch.arange(len(TARGET)))
    assert block.made.all()
    cosines = torch.cosine_similarity(donor[:, None].double(), donor[task.anchor_target][None].double(), dim=2)
    if method == "clp":
        weights = cosines / cosines.sum(dim=1, keepdim=True)
        torch.testing.assert_close(block.diagnostics["mean_cosine"].double(), cosines.mean(dim=1), atol=1e-5, rtol=0)
    else:
        # Sparsemax is the nearest point of the simplex: no other one of its corners' mixtures comes closer.
        values = block.rows
        weights = torch.zeros_like(cosines)
        place = {int(source): index for index, source in enumerate(task.anchor_source)}
        for row in range(len(TARGET)):
            for source, weight in zip(values.indices[row].tolist(), values.weights[row].tolist(), strict=True):
                if source >= 0:
                    weights[row, place[source]] = weight
        gap = cosines - weights
        used = weights > 0
        thresholds = torch.stack([gap[row][used[row]].mean() for row in range(len(TARGET))])[:, None]
        torch.testing.assert_close((cosines - thresholds).clamp(min=0), weights, atol=1e-5, rtol=0)
    expected = weights @ task.rows[task.anchor_source].double()
    torch.testing.assert_close(block.values(task.rows).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", CLP)
def test_donor_methods_do_not_make_what_the_donor_cannot_tell(method):
    donor = torch.rand(len(TARGET) - 1, 4, generator=torch.Generator().manual_seed(2))
    donor[XYZ] = 0
    task = make_task(donor_rows=donor)
    has = torch.ones(len(TARGET), dtype=torch.bool)
    has[3] = has[-1] = False
    kept = task.anchor_target != len(TARGET) - 1
    task = replace(task, donor_has=has, anchor_source=task.anchor_source[kept], anchor_target=task.anchor_target[kept])
    made = build(task, method).rows(torch.arange(len(TARGET))).made
    assert made.logical_not().nonzero().flatten().tolist() == [3, XYZ, len(TARGET) - 1]


def test_clp_does_not_make_rows_whose_weights_have_the_wrong_sign():
    donor = torch.rand(len(TARGET), 4, generator=torch.Generator().manual_seed(2))
    donor[XYZ] = -1
    block = build(make_task(donor_rows=donor), "clp").rows(torch.tensor([XYZ, 3]))
    assert block.made.tolist() == [False, True]
    assert block.diagnostics["mean_cosine"][0] < 0


@pytest.mark.parametrize("method", CLP)
def test_donor_methods_say_what_is_missing(method):
    with pytest.raises(StageError, match=rf"{method} .*models.donor"):
        build(make_task(), method)
    task = make_task(donor_width=3)
    empty = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(StageError, match=rf"{method} .* none that may be used"):
        build(replace(task, anchor_source=empty, anchor_target=empty), method)
