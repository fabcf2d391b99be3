"""What orthogonal matching pursuit computes in float64: solutions, near-ties and nearly dependent atoms."""

from __future__ import annotations

import torch
from torch import Tensor

ATOMS_AT_A_TIME = 512
CORRECTIONS = 2
"""Rounds of iterative refinement, each of which gains four digits or more on a factor good to float32."""


class ExactAtoms:
    """The atoms as they were given, read into float64 row by row.

    Args:
        atoms: [N, D], any floating-point type, no zero rows.
        cosine: score unit atoms instead of the atoms as they are.
    """

    def __init__(self, atoms: Tensor, *, cosine: bool) -> None:
        self.atoms = atoms
        self.norms = torch.cat([part.double().norm(dim=1) for part in atoms.split(ATOMS_AT_A_TIME)])
        self._cosine = cosine

    def units(self, indices: Tensor) -> Tensor:
        """The atoms at ``indices`` [...] as vectors of norm 1, float64 [..., D]."""
        return self.atoms[indices].double().div_(self.norms[indices][..., None])

    def best_of(self, owners: Tensor, atoms: Tensor, residuals: Tensor) -> Tensor:
        """The candidate with the greatest score for each of float64 ``residuals`` [P, D], int64 [P].

        Args:
            owners, atoms: int64 [Q], pairs of a residual and a candidate; each residual has one at least.
        """
        scores = torch.einsum("qd,qd->q", self.atoms[atoms].double(), residuals[owners]).abs_()
        if self._cosine:
            scores /= self.norms[atoms]
        # Rounded, so that what differs by float64's rounding alone is a tie.
        scores = scores.float()
        best = scores.new_zeros(len(residuals)).scatter_reduce_(0, owners, scores, "amax")
        tied = scores == best[owners]
        none = torch.full((len(residuals),), len(self.atoms), device=atoms.device)
        return none.scatter_reduce_(0, owners[tied], atoms[tied], "amin")

    def best_of_all(self, residuals: Tensor, chosen: Tensor) -> Tensor:
        """The atom with the greatest score of all but ``chosen`` [P, t] for float64 ``residuals`` [P, D], int64 [P]."""
        best = torch.full((len(residuals),), -1.0, device=residuals.device)
        picks = torch.full((len(residuals),), -1, device=residuals.device)
        for start in range(0, len(self.atoms), ATOMS_AT_A_TIME):
            part = slice(start, start + ATOMS_AT_A_TIME)
            scores = residuals @ self.atoms[part].double().T
            scores = (scores / self.norms[part] if self._cosine else scores).abs_().float()
            owners, places = ((chosen >= start) & (chosen < start + scores.shape[1])).nonzero(as_tuple=True)
            scores[owners, chosen[owners, places] - start] = -1.0
            top, place = scores.max(dim=1)
            # Strictly greater: of equal scores, the lowest index stays.
            better = top > best
            best, picks = torch.where(better, top, best), torch.where(better, start + place, picks)
        return picks


def orthonormalised(units: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of ``units`` [P, t, D] (float64), the last of which may depend on the others.

    Returns:
        Lower triangular T [P, t, t], the inverse of the Gram matrix's Cholesky factor: T @ units is the basis. And what
        share of the last unit is new to the span of the others, [P]; where it is 0, the last row of T is huge.
    """
    gram = units @ units.mT
    earlier = units.shape[1] - 1
    factor = torch.linalg.cholesky(gram[:, :earlier, :earlier])
    identity = torch.eye(earlier, dtype=gram.dtype, device=gram.device).expand_as(factor)
    basis = torch.zeros_like(gram)
    basis[:, :earlier, :earlier] = torch.linalg.solve_triangular(factor, identity, upper=False)
    row, new = basis_row(basis[:, :earlier, :earlier], gram[:, -1, :earlier])
    basis[:, -1] = row
    return basis, new


def basis_row(basis: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """The next row of T [P, t, t], [P, t + 1], for a unit with inner products ``entries`` [P, t]; its new share [P].

    The unit's components l = T g in the basis leave a remainder of norm d = sqrt(1 - |l|^2): the row is (-l T, 1) / d.
    """
    components = torch.bmm(basis, entries[..., None])
    new = (1 - components.square().sum(dim=(1, 2))).clamp_min(0).sqrt()
    divisor = new.clamp_min(torch.finfo(new.dtype).eps)[:, None]
    combination = torch.bmm(components.mT, basis).squeeze(1)
    return torch.cat([-combination / divisor, 1 / divisor], dim=1), new


def refined(units: Tensor, basis: Tensor, targets: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares coefficients [P, t] and residuals [P, D] of float64 ``targets`` [P, D] on ``units`` [P, t, D].

    Args:
        basis: T [P, t, t], to float32's precision or better.
        coefficients: [P, t], to that precision.
    """
    residuals = targets - torch.bmm(coefficients[:, None], units).squeeze(1)
    for _ in range(CORRECTIONS):
        components = torch.bmm(basis, torch.bmm(units, residuals[..., None]))
        coefficients = coefficients + torch.bmm(components.mT, basis).squeeze(1)
        residuals = targets - torch.bmm(coefficients[:, None], units).squeeze(1)
    return coefficients, residuals


def ridge_solution(atoms: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """(A A^T + ridge I)^-1 A y for float64 A [P, t, D] and y [P, D], as [P, t]."""
    gram = atoms @ atoms.mT
    gram.diagonal(dim1=1, dim2=2).add_(ridge)
    products = torch.bmm(atoms, targets[..., None])
    return torch.cholesky_solve(products, torch.linalg.cholesky(gram)).squeeze(2)
