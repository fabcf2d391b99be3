"""Orthogonal matching pursuit against a literal float64 greedy search, worked examples and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp_gram

from alignment.initializers import omp as omp_module
from alignment.initializers.omp import WORK_BYTES, MemoryPlan, OrthogonalMatchingPursuit, memory_plan, omp


def greedy(anchors, target, k, *, cosine=False, stop_tol=1e-6):
    """Picks and coefficients by definition, in float64, one target at a time."""
    atoms, target = anchors.double().numpy(), target.double().numpy()
    norms = np.linalg.norm(atoms, axis=1)
    picks, coefficients, residual = [], np.zeros(0), target
    while len(picks) < min(k, *atoms.shape):
        scores = np.abs(atoms @ residual) / (norms if cosine else 1)
        scores = scores.astype(np.float32)
        scores[picks] = -1
        pick = int(scores.argmax())
        known = atoms[picks].T
        within = known @ np.linalg.lstsq(known, atoms[pick], rcond=None)[0] if picks else 0
        if np.linalg.norm(atoms[pick] - within) <= 1e-3 * norms[pick]:
            break
        picks.append(pick)
        coefficients = np.linalg.lstsq(atoms[picks].T, target, rcond=None)[0]
        residual = target - atoms[picks].T @ coefficients
        if np.linalg.norm(residual) <= stop_tol * np.linalg.norm(target):
            break
    return picks, coefficients, np.linalg.norm(residual) / np.linalg.norm(target)


def agree(found, anchors, targets, k, **options):
    for row, target in enumerate(targets):
        picks, coefficients, residual = greedy(anchors, target, k, **options)
        assert found.rows.indices[row].tolist() == picks + [-1] * (k - len(picks))
        assert found.used[row] == len(picks)
        np.testing.assert_allclose(found.rows.weights[row, : len(picks)], coefficients, rtol=1e-4, atol=1e-5)
        assert found.relative_residual[row].item() == pytest.approx(residual, rel=1e-4, abs=1e-7)
        assert found.weight_l1[row].item() == pytest.approx(np.abs(coefficients).sum(), rel=1e-4)


def matrix(kind, rows, width, generator):
    values = torch.randn(rows, width, generator=generator)
    if kind == "integers":  # ties
        return torch.randint(-2, 3, (rows, width), generator=generator).float()
    if kind == "low rank":
        return values[:, : max(1, width // 3)] @ torch.randn(max(1, width // 3), width, generator=generator)
    if kind == "norms":  # of very different size
        return values * torch.exp(3 * torch.randn(rows, 1, generator=generator))
    if kind == "common mean":
        return values + 3
    if kind == "duplicates":
        return values[torch.randint(0, max(1, rows // 3), (rows,), generator=generator)]
    if kind == "nearly dependent":
        return values[torch.randint(0, max(1, rows // 3), (rows,), generator=generator)] + values * 1e-3
    return values


KINDS = ["gaussian", "integers", "low rank", "norms", "common mean", "duplicates", "nearly dependent"]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 400),
    width=st.integers(1, 24),
    k=st.integers(1, 40),
    cosine=st.booleans(),
    stop_tol=st.sampled_from([1e-6, 0.02, 0.4]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_the_picks_are_those_of_a_float64_greedy_search(kind, count, width, k, cosine, stop_tol, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    both = matrix(kind, count + 5, width, generator).to(dtype)
    both = both[(both != 0).any(dim=1)]
    anchors, targets = both[:-5], both[-5:]
    if len(anchors) == 0:
        return
    k = min(k, len(anchors))
    select = "cosine" if cosine else "raw"
    agree(
        omp(anchors, targets, k, select=select, stop_tol=stop_tol),
        anchors,
        targets,
        k,
        cosine=cosine,
        stop_tol=stop_tol,
    )


def test_many_steps_among_many_atoms():
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(3008, 40, generator=generator) @ torch.randn(40, 96, generator=generator)
    both = latent + 0.5 * torch.randn(3008, 96, generator=generator)
    agree(omp(both[:3000], both[3000:], 64), both[:3000], both[3000:], 64)


ATOMS = torch.tensor([[2.0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1]])
BASE = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]])


@pytest.mark.parametrize(
    ("picks", "coefficients", "residual", "row"),
    [
        ([2], [2.5], 1.322876, [0, 0, 2.5]),
        ([2, 0], [2.5, 0.5], 0.866025, [0.5, 0, 2.5]),
        ([2, 0, 1], [2, 0, 1], 0.5, [0, 1, 2]),
        ([2, 0, 1, 3], [1.5, -0.25, 1.5, 0.5], 0, [0.25, 2, 1.5]),
    ],
)
def test_the_worked_example(picks, coefficients, residual, row):  # embedding_init.md §4.1
    target = torch.tensor([[1.0, 3, 2, 0.5]])
    found = omp(ATOMS, target, len(picks))
    assert found.rows.indices.tolist() == [picks]
    torch.testing.assert_close(found.rows.weights, torch.tensor([coefficients]).float(), atol=1e-5, rtol=0)
    assert found.relative_residual.item() * target.norm().item() == pytest.approx(residual, abs=1e-5)
    torch.testing.assert_close(found.rows.combine(BASE), torch.tensor([row]).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("k", "row"), [(1, [1.5, -1.5]), (2, [2.5, -0.5]), (3, [3, 0])])
def test_ties_go_to_the_lowest_index(k, row):  # embedding_init.md §4.2
    atoms = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 2]])
    base = torch.tensor([[1.0, 0], [0, 1], [1, -1], [2, 2]])
    found = omp(atoms, torch.tensor([[2.0, 1, 1]]), k)
    torch.testing.assert_close(found.rows.combine(base), torch.tensor([row]).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("gap", "pick"), [(1e-9, 0), (1e-6, 1)])
def test_what_float32_cannot_tell_apart_is_a_tie(gap, pick):
    atoms = torch.tensor([[1.0, 0, 0.3], [1 + gap, 0.2, 0], [0.2, 0.1, 0.1]], dtype=torch.float64)
    assert omp(atoms, torch.tensor([[1.0, 0, 0]]), 1).rows.indices.tolist() == [[pick]]


def test_agrees_with_scikit_learn_on_unit_atoms():
    generator = torch.Generator().manual_seed(3)
    atoms = torch.randn(200, 30, generator=generator, dtype=torch.float64)
    atoms /= atoms.norm(dim=1, keepdim=True)
    targets = torch.randn(6, 30, generator=generator, dtype=torch.float64)
    found = omp(atoms, targets, 10)
    dense = torch.zeros(6, 200).scatter_(1, found.rows.indices, found.rows.weights)
    expected = orthogonal_mp_gram((atoms @ atoms.T).numpy(), (atoms @ targets.T).numpy(), n_nonzero_coefs=10)
    np.testing.assert_allclose(dense, expected.T, atol=1e-6)


def test_coefficients_stay_small_beyond_the_rank():
    generator = torch.Generator().manual_seed(4)
    wide = torch.randn(150, 5, generator=generator) @ torch.randn(5, 40, generator=generator)
    for anchors in (torch.randn(150, 6, generator=generator), wide):
        found = omp(anchors[:-20], anchors[-20:], 60)
        rank = torch.linalg.matrix_rank(anchors)
        assert (found.used <= rank).all()
        assert found.weight_l1.max() < 20
        torch.testing.assert_close(found.rows.combine(anchors), anchors[-20:], atol=1e-4, rtol=1e-4)


def test_a_duplicate_is_never_picked_beside_its_original():
    generator = torch.Generator().manual_seed(5)
    atoms = torch.randn(60, 24, generator=generator)
    doubled = torch.cat([atoms, atoms, 2 * atoms[:10]])
    found = omp(doubled, torch.randn(30, 24, generator=generator), 24, select="cosine")
    assert (found.rows.indices < 60).all()
    for row in found.rows.indices:
        assert len(row[row >= 0].unique()) == (row >= 0).sum()


def test_each_target_is_on_its_own():
    generator = torch.Generator().manual_seed(6)
    anchors, targets = torch.randn(500, 32, generator=generator), torch.randn(15, 32, generator=generator)
    whole = omp(anchors, targets, 10)
    order = torch.randperm(15, generator=generator)
    solver = OrthogonalMatchingPursuit(anchors, 10)
    for part in (order, *order.split(7), *order.split(1)):
        found = solver.solve(targets[part])
        assert torch.equal(found.rows.indices, whole.rows.indices[part])
        torch.testing.assert_close(found.rows.weights, whole.rows.weights[part], atol=1e-7, rtol=1e-6)
    again = omp(anchors, targets, 10)
    assert torch.equal(again.rows.weights, whole.rows.weights)


def test_anchors_in_another_order_are_the_same_anchors():
    generator = torch.Generator().manual_seed(7)
    anchors, targets = torch.randn(300, 32, generator=generator), torch.randn(20, 32, generator=generator)
    order = torch.randperm(300, generator=generator)
    assert torch.equal(order[omp(anchors[order], targets, 12).rows.indices], omp(anchors, targets, 12).rows.indices)


def test_a_linear_map_carries_the_approximation_over():
    generator = torch.Generator().manual_seed(8)
    anchors, targets = torch.randn(300, 32, generator=generator), torch.randn(20, 32, generator=generator)
    turn = torch.randn(32, 48, generator=generator)
    rows = omp(anchors, targets, 12).rows
    torch.testing.assert_close(rows.combine(anchors @ turn), rows.combine(anchors) @ turn, atol=1e-4, rtol=1e-4)
    exact = omp(anchors, targets, 32).rows
    torch.testing.assert_close(exact.combine(anchors @ turn), targets @ turn, atol=1e-3, rtol=1e-3)


def test_the_residual_falls_with_every_atom():
    generator = torch.Generator().manual_seed(9)
    anchors, targets = torch.randn(300, 32, generator=generator), torch.randn(20, 32, generator=generator)
    residuals = torch.stack([omp(anchors, targets, k).relative_residual for k in range(1, 16)])
    assert (residuals.diff(dim=0) < 0).all()
    found = omp(anchors, targets, 15)
    left = (targets - found.rows.combine(anchors)).norm(dim=1) / targets.norm(dim=1)
    torch.testing.assert_close(found.relative_residual, left, atol=1e-5, rtol=1e-5)


def test_ridge_shrinks_the_weights_of_the_same_picks():
    generator = torch.Generator().manual_seed(10)
    anchors, targets = torch.randn(300, 32, generator=generator), torch.randn(20, 32, generator=generator)
    plain, ridge = omp(anchors, targets, 12), omp(anchors, targets, 12, ridge=5.0)
    assert torch.equal(plain.rows.indices, ridge.rows.indices)
    assert (ridge.relative_residual > plain.relative_residual).all()
    for row, picks in enumerate(ridge.rows.indices):
        atoms = anchors[picks].double().numpy()
        expected = np.linalg.solve(atoms @ atoms.T + 5 * np.eye(12), atoms @ targets[row].double().numpy())
        np.testing.assert_allclose(ridge.rows.weights[row], expected, rtol=1e-5, atol=1e-7)


def test_little_memory_changes_nothing():
    generator = torch.Generator().manual_seed(11)
    anchors, targets = torch.randn(1000, 32, generator=generator), torch.randn(40, 32, generator=generator)
    plenty = omp(anchors, targets, 8)
    columns = []
    for spare in (60_000, 400_000):
        budget = WORK_BYTES + 1024 * (4 * 32 + 32) + spare
        plan = memory_plan(1000, 32, 8, budget)
        assert plan.total_bytes <= budget
        columns.append(plan.columns)
        found = omp(anchors, targets, 8, memory_budget=budget)
        assert torch.equal(found.rows.indices, plenty.rows.indices)
    assert 8 <= columns[0] < columns[1] < len(plenty.rows.indices.unique())


def test_targets_whose_columns_find_no_room_come_later(monkeypatch):
    generator = torch.Generator().manual_seed(12)
    anchors, targets = torch.randn(400, 16, generator=generator), torch.randn(64, 16, generator=generator)
    plenty = omp(anchors, targets, 8)
    sizes = []
    pursue = OrthogonalMatchingPursuit._pursue
    monkeypatch.setattr(
        OrthogonalMatchingPursuit,
        "_pursue",
        lambda self, part, poll: sizes.append(len(part)) or pursue(self, part, poll),
    )
    monkeypatch.setattr(omp_module, "memory_plan", lambda *given: MemoryPlan(columns=40, batch=64, total_bytes=0))
    found = omp(anchors, targets, 8)
    assert sizes[0] == 64
    assert sizes[1] < 64
    assert torch.equal(found.rows.indices, plenty.rows.indices)


def test_a_zero_target_gets_no_atoms():
    found = omp(ATOMS, torch.stack([torch.zeros(4), torch.ones(4)]), 2)
    assert found.used.tolist() == [0, 2]
    assert found.relative_residual[0] == 0
    assert found.rows.combine(BASE)[0].tolist() == [0, 0, 0]


def test_gradients_of_the_caller_do_not_matter():
    generator = torch.Generator().manual_seed(13)
    anchors, targets = torch.randn(300, 16, generator=generator), torch.randn(9, 16, generator=generator)
    plain = omp(anchors, targets, 6).rows
    with torch.no_grad():
        assert torch.equal(omp(anchors, targets, 6).rows.weights, plain.weights)
    tracked = omp(torch.nn.Parameter(anchors), torch.nn.Parameter(targets), 6).rows
    assert torch.equal(tracked.weights, plain.weights)
    assert not tracked.weights.requires_grad


def test_work_can_be_interrupted():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        OrthogonalMatchingPursuit(ATOMS, 2).solve(torch.ones(1, 4), stop)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="k is 6, but there are 5 anchors"):
        omp(ATOMS, ATOMS, 6)
    with pytest.raises(ValueError, match="zero rows"):
        omp(torch.cat([ATOMS, torch.zeros(1, 4)]), ATOMS, 2)
    with pytest.raises(ValueError, match=r"need at least .* GiB, but the memory budget is 0\.01 GiB"):
        omp(ATOMS, ATOMS, 2, memory_budget=2**20 * 10)
