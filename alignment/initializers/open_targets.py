"""The targets of a batch of orthogonal matching pursuit that still need atoms."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class OpenTargets:
    """The R targets that still need atoms, with t atoms each. Targets and atoms have norm 1 here.

    Attributes:
        rows: int64 [R], their places in the batch.
        atoms, slots: int64 [R, t], atoms in the order of the picks, and where their Gram columns are.
        basis: float64 [R, k, k], lower triangular: the first t rows make an orthonormal basis of the atoms.
        smallest: float64 [R], the least share of an atom that was new to the span of those before it.
        coefficients: float64 [R, t], of least squares, good to float32.
        remaining: float64 [R], squared norm of the residual.
        held, held_norms: float64 [R, k] and [R], the coefficients of the residuals that the Gram columns were given
            as targets last, and these residuals' norms.
    """

    rows: Tensor
    atoms: Tensor
    slots: Tensor
    basis: Tensor
    smallest: Tensor
    coefficients: Tensor
    remaining: Tensor
    held: Tensor
    held_norms: Tensor

    @classmethod
    def at_start(cls, count: int, k: int, device: torch.device) -> OpenTargets:
        """``count`` targets without atoms, which shall have ``k`` at most."""
        rows = torch.arange(count, device=device)
        ones = torch.ones(count, dtype=torch.float64, device=device)
        none = rows.new_empty(count, 0)
        return cls(
            rows=rows,
            atoms=none,
            slots=none,
            basis=ones.new_zeros(count, k, k),
            smallest=ones,
            coefficients=ones.new_empty(count, 0),
            remaining=ones,
            held=ones.new_zeros(count, k),
            held_norms=ones,
        )

    @property
    def count(self) -> int:
        """Atoms of each target, t."""
        return self.atoms.shape[1]

    def basis_of(self, part: Tensor | slice = slice(None)) -> Tensor:
        """The bases of some targets, [P, t, t]."""
        return self.basis[part, : self.count, : self.count]

    def kept(self, mask: Tensor) -> OpenTargets:
        """Without the targets outside ``mask`` [R]."""
        return OpenTargets(*(getattr(self, field.name)[mask] for field in fields(self)))
