"""One batch of orthogonal matching pursuit, each question asked in the least precision that can answer it.

float16 Gram columns propose atoms; where they propose several, float32 residuals choose; where float32 cannot tell
either, float64 does. Bases are float32's until atoms are nearly dependent; the results are float64's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from alignment.initializers.exact_atoms import ExactAtoms, basis_row, orthonormalised, refined, ridge_solution
from alignment.initializers.gram_columns import Candidates, ColumnsExhausted, GramColumns, weighted_sums
from alignment.initializers.open_targets import OpenTargets

NEW_DIRECTION = 1e-3
"""An atom of which less than this share of its norm is new to the span is not picked (§5.1: L_tt^2 < 1e-6 G_jj)."""
NEARLY_DEPENDENT = 0.1
"""Below this share a target's basis is computed in float64."""
NEARLY_DONE = 1e-2
"""Below this relative residual, it is computed in float64."""
REFRESH_EVERY = 32
"""Steps between products of all atoms with the residuals, from which float16 columns lead on."""
PART_BYTES = 8 * 2**20
"""Atoms gathered at a time: few enough to stay in the processor's cache."""


@dataclass(frozen=True)
class PursuitOptions:
    """When targets have enough atoms, and how the weights are solved for.

    Attributes:
        k: most atoms of a target.
        stop_tol: relative residual at which a target has enough.
        ridge: added to the diagonal of the Gram matrix in the final solve; 0 for none.
    """

    k: int
    stop_tol: float
    ridge: float


class Batch:
    """B targets on their way to k atoms each.

    Args:
        exact, columns: the N atoms, as given and as Gram columns.
        targets: [B, D], none of them zero.

    Attributes:
        indices: int64 [B, k], atoms in the order of the picks; -1 beyond the last.
        weights: float64 [B, k], their coefficients.
        residuals: float64 [B], relative to the target's norm.
        deferred: int64 [Q], targets that were given up for want of memory.
    """

    def __init__(self, exact: ExactAtoms, columns: GramColumns, targets: Tensor, options: PursuitOptions) -> None:
        self._exact, self._columns, self._options = exact, columns, options
        self._targets = targets
        self._norms = targets.double().norm(dim=1)
        self._units = (targets / self._norms[:, None]).float()
        self._open = OpenTargets.at_start(len(targets), options.k, targets.device)
        self.indices = torch.full((len(targets), options.k), -1, device=targets.device)
        self.weights = torch.zeros_like(self._open.held)
        self.residuals = torch.ones_like(self._norms)
        self.deferred = self._open.rows[:0]
        columns.start_batch()

    @property
    def finished(self) -> bool:
        """Whether all targets have their atoms or were given up."""
        return len(self._open.rows) == 0

    @torch.enable_grad()
    def step(self) -> None:
        """Give every target its next atom, or let it leave."""
        state, columns = self._open, self._columns
        norms = columns.norms[state.atoms]
        # The gradient of weighted sums by the weights gives the atoms' inner products with the next pick.
        weights = (state.coefficients.float() / norms).requires_grad_()
        targets = self._units[state.rows]
        explained = weighted_sums(columns.atoms, state.atoms, weights) if state.count else torch.zeros_like(targets)
        residuals = targets - explained.detach()
        if state.count % REFRESH_EVERY == 0:
            self._refresh(residuals)
        picks = self._picks(residuals)
        try:
            slots = columns.slots(picks)
        except ColumnsExhausted:
            self._defer_half()
            return

        units = columns.atoms[picks] / columns.norms[picks, None]
        entries = torch.autograd.grad(explained, weights, units)[0] / norms if state.count else norms
        self._append(picks, slots, entries.double(), torch.einsum("rd,rd->r", residuals, units).double())

    def _defer_half(self) -> None:
        """Give up half of the targets, and with them the columns that the others do not use."""
        state = self._open
        left = torch.arange(len(state.rows), device=state.rows.device) < len(state.rows) // 2
        self.deferred = torch.cat([self.deferred, state.rows[~left]])
        self._open = state.kept(left)
        self._columns.start_batch(self._open.slots)

    def _refresh(self, residuals: Tensor) -> None:
        """Give the columns the residuals as targets, so that float16 adds up small changes only."""
        state = self._open
        norms = residuals.norm(dim=1)
        directions = residuals.new_zeros(len(self._targets), residuals.shape[1])
        directions[state.rows] = residuals / norms[:, None]
        self._columns.set_targets(directions)
        state.held_norms = norms.double()
        state.held = F.pad(state.coefficients, (0, self._options.k - state.count))

    def _picks(self, residuals: Tensor) -> Tensor:
        """The atom with the greatest score for each of float32 ``residuals`` [R, D], int64 [R]."""
        state = self._open
        error = self._rounding()
        changes = (state.coefficients - state.held[:, : state.count]) / state.held_norms[:, None]
        held_error = error / state.held_norms.float()
        owners, atoms = self._columns.candidates(state.rows, state.slots, changes, held_error)
        free = ~(state.atoms[owners] == atoms[:, None]).any(dim=1)
        owners, atoms = self._contenders(Candidates(owners[free], atoms[free]), residuals, error)
        contenders = torch.bincount(owners, minlength=len(residuals))
        picks = torch.full_like(state.rows, -1)
        picks[owners] = atoms
        for part in self._parts(contenders > 1):
            place = picks.new_full((len(picks),), -1)
            place[part] = torch.arange(len(part), device=part.device)
            own = place[owners] >= 0
            picks[part] = self._exact.best_of(place[owners[own]], atoms[own], self._exact_residuals(part))
        for part in self._parts(contenders == 0):
            picks[part] = self._exact.best_of_all(self._exact_residuals(part), state.atoms[part])
        return picks

    def _rounding(self) -> Tensor:
        """Norm by which float32 residuals and their inner products with unit vectors may be off, float32 [R].

        A sum of n products is taken to be off by sqrt(n) roundings, which is many times what is seen in practice. The
        coefficients multiply that; theirs is the greater, the less of an atom is new.
        """
        state = self._open
        scale = torch.finfo(torch.float32).eps * math.sqrt(self._targets.shape[1] + self._options.k)
        size = 1 + state.coefficients.abs().sum(dim=1)
        return (scale * size / state.smallest.clamp_min(NEARLY_DEPENDENT)).float()

    def _contenders(self, candidates: Candidates, residuals: Tensor, error: Tensor) -> Candidates:
        """The candidates that may be best as far as float32 can tell."""
        owners, atoms = candidates
        counts = torch.bincount(owners, minlength=len(residuals))
        alone = counts[owners] == 1
        magnitudes = self._products(owners[~alone], atoms[~alone], residuals).abs_()
        slack = self._columns.norms[atoms[~alone]] * error[owners[~alone]]
        floor = residuals.new_zeros(len(residuals))
        floor.scatter_reduce_(0, owners[~alone], magnitudes - slack, "amax")
        best = alone.clone()
        best[~alone] = (magnitudes + slack >= floor[owners[~alone]]) & (floor[owners[~alone]] > 0)
        return Candidates(owners[best], atoms[best])

    def _products(self, owners: Tensor, atoms: Tensor, residuals: Tensor) -> Tensor:
        """Inner products of the pairs' atoms and residuals, float32 [P]; pairs are in the order of their owners."""
        if len(owners) == 0:
            return residuals.new_empty(0)
        # As above, the gradient of a weighted sum: no row is copied.
        weights = residuals.new_zeros(len(owners)).requires_grad_()
        present, lengths = owners.unique_consecutive(return_counts=True)
        sums = F.embedding_bag(
            atoms, self._columns.atoms, lengths.cumsum(0) - lengths, mode="sum", per_sample_weights=weights
        )
        return torch.autograd.grad(sums, weights, residuals[present])[0]

    def _append(self, picks: Tensor, slots: Tensor, entries: Tensor, products: Tensor) -> None:
        """Extend the bases by the picks, or let targets leave whose pick is no new direction.

        Args:
            slots: int64 [R], of the picks.
            entries: float64 [R, t], inner products of the picks with the atoms.
            products: float64 [R], inner products of the picks with the residuals.
        """
        state, t = self._open, self._open.count
        row, new = basis_row(state.basis_of(), entries)
        coordinates = products / new
        coefficients = F.pad(state.coefficients, (0, 1)) + coordinates[:, None] * row
        remaining = state.remaining - coordinates.square()
        smallest = torch.minimum(state.smallest, new)
        state.basis[:, t, : t + 1] = row
        for part in self._parts(smallest < NEARLY_DEPENDENT):
            units = self._exact.units(torch.cat([state.atoms[part], picks[part, None]], dim=1))
            basis, new[part] = orthonormalised(units)
            exact = torch.bmm(basis, torch.bmm(units, self._unit_targets(part)[..., None]))
            state.basis[part, : t + 1, : t + 1] = basis
            coefficients[part] = torch.bmm(exact.mT, basis).squeeze(1)
            remaining[part] = 1 - exact.square().sum(dim=(1, 2))

        independent = new > NEW_DIRECTION
        self._leave(~independent)
        state = self._open
        state.atoms = torch.cat([state.atoms, picks[independent, None]], dim=1)
        state.slots = torch.cat([state.slots, slots[independent, None]], dim=1)
        state.coefficients = coefficients[independent]
        state.remaining, state.smallest = remaining[independent], smallest[independent]
        self._leave(self._explained() | (state.count == self._options.k))

    def _explained(self) -> Tensor:
        """Which targets are so close to their approximation that they need no further atom, bool [R]."""
        tolerance = self._options.stop_tol
        near = self._open.remaining <= max(NEARLY_DONE, 1.01 * tolerance) ** 2
        done = torch.zeros_like(near)
        for part in self._parts(near):
            done[part] = self._solution(part)[1].norm(dim=1) <= tolerance
        return done

    def _unit_targets(self, part: Tensor) -> Tensor:
        """Some targets with norm 1, float64 [P, D]."""
        rows = self._open.rows[part]
        return self._targets[rows].double() / self._norms[rows, None]

    def _solution(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients [P, t] and residuals [P, D] of some targets, in float64."""
        state = self._open
        units, targets = self._exact.units(state.atoms[part]), self._unit_targets(part)
        return refined(units, state.basis_of(part), targets, state.coefficients[part])

    def _exact_residuals(self, part: Tensor) -> Tensor:
        """Residuals of some targets as they were given, float64 [P, D]."""
        return self._solution(part)[1] * self._norms[self._open.rows[part], None]

    def _part_size(self, atoms: int) -> int:
        return max(1, PART_BYTES // (8 * self._targets.shape[1] * atoms))

    def _parts(self, mask: Tensor) -> tuple[Tensor, ...]:
        """The targets in ``mask`` [R], as many at a time as PART_BYTES hold the atoms of in float64."""
        targets = mask.nonzero().squeeze(1)
        return targets.split(self._part_size(self._open.count + 1)) if len(targets) else ()

    def _leave(self, mask: Tensor) -> None:
        """Write down the results of the targets in ``mask`` [R] and go on without them."""
        state = self._open
        for part in self._parts(mask):
            rows, atoms = state.rows[part], state.atoms[part]
            norms = self._norms[rows, None]
            if self._options.ridge:
                matrix, targets = self._exact.atoms[atoms].double(), self._targets[rows].double()
                weights = ridge_solution(matrix, targets, self._options.ridge)
                residuals = (targets - torch.bmm(weights[:, None], matrix).squeeze(1)) / norms
            else:
                coefficients, residuals = self._solution(part)
                weights = coefficients / self._exact.norms[atoms] * norms
            self.indices[rows, : state.count] = atoms
            self.weights[rows, : state.count] = weights
            self.residuals[rows] = residuals.norm(dim=1)
        if bool(mask.any()):
            self._open = state.kept(~mask)
