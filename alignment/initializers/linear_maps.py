"""New rows by a linear map from a donor's space to the student's, fitted on anchors.

row(t) = (d(t) - mean of the anchors' d) W + mean of the anchors' E. Legend: N anchors, d their donor rows [N, D_donor],
E their student rows [N, D], X and Y the same less their means.

procrustes   W = s U V', where U S V' is the thin singular value decomposition of X'Y: among orthogonal maps the one
             that minimises |X W - Y| (Schönemann 1966).
ridge        W = (X'X + l I)^-1 X'Y.

Source: embedding_init.md §1.4 (where ``landmark_pca`` of mergekit-tokensurgeon has the transpose of the optimal
rotation) and §1.8 (SAVA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignment.initializers.rows import mean_row

Scale = Literal["least_squares", "norm"]

_BLOCK_ROWS = 1 << 13


@dataclass(frozen=True)
class Moments:
    """First and second moments of N pairs of rows, all float64.

    Attributes:
        donor_mean: [D_donor].
        student_mean: [D].
        donor_gram: X'X [D_donor, D_donor].
        cross: X'Y [D_donor, D].
        student_energy: the sum of the squares of Y.
    """

    donor_mean: Tensor
    student_mean: Tensor
    donor_gram: Tensor
    cross: Tensor
    student_energy: float


@dataclass(frozen=True)
class LinearMap:
    """An affine map from donor rows to student rows.

    Attributes:
        donor_mean: float64 [D_donor].
        student_mean: float64 [D].
        matrix: float64 [D_donor, D].
        relative_error: |X W - Y| / |Y| on the anchors it was fitted on.
    """

    donor_mean: Tensor
    student_mean: Tensor
    matrix: Tensor
    relative_error: float

    def __call__(self, donor_rows: Tensor) -> Tensor:
        """The student rows float32 [M, D] of donor rows [M, D_donor]."""
        return ((donor_rows.double() - self.donor_mean) @ self.matrix + self.student_mean).float()


def moments(donor: Tensor, student: Tensor) -> Moments:
    """The moments of paired rows [N, D_donor] and [N, D] of any floating dtype."""
    donor_mean, student_mean = mean_row(donor), mean_row(student)
    gram = torch.zeros(len(donor_mean), len(donor_mean), dtype=torch.float64)
    cross = torch.zeros(len(donor_mean), len(student_mean), dtype=torch.float64)
    energy = 0.0
    for donor_block, student_block in zip(donor.split(_BLOCK_ROWS), student.split(_BLOCK_ROWS), strict=True):
        X, Y = donor_block.double() - donor_mean, student_block.double() - student_mean
        gram.addmm_(X.T, X)
        cross.addmm_(X.T, Y)
        energy += float(Y.square().sum())
    return Moments(donor_mean, student_mean, gram, cross, energy)


def procrustes_map(of: Moments, scale: Scale) -> LinearMap:
    """The best orthogonal map, times one number.

    Where the widths differ the narrower space is as if padded with zeros, as in SAVA: the map keeps all lengths if the
    student is wider, and projects if the donor is. Directions that the anchors do not span go to zero rather than
    anywhere.

    Args:
        scale: ``least_squares`` takes the factor of least error, which shrinks rows the less the two spaces agree;
            ``norm`` gives the mapped anchors the root mean square norm of the student's.
    """
    left, values, right = torch.linalg.svd(of.cross, full_matrices=False)
    determined = values > values[0] * max(of.cross.shape) * torch.finfo(torch.float64).eps
    rotation = left[:, determined] @ right[determined]
    energy = float(((of.donor_gram @ rotation) * rotation).sum())
    if not energy:
        return _fitted(of, rotation)
    factor = float(values.sum()) / energy if scale == "least_squares" else (of.student_energy / energy) ** 0.5
    return _fitted(of, factor * rotation)


def ridge_map(of: Moments, ridge: float) -> LinearMap:
    """The affine map of least squared error plus ``ridge`` > 0 times the mean eigenvalue of X'X times |W|^2."""
    gram = of.donor_gram.clone()
    strength = ridge * gram.diagonal().mean()
    # Anchors that are all alike determine nothing: any positive number gives the zero map.
    gram.diagonal().add_(strength if strength > 0 else 1.0)
    return _fitted(of, torch.cholesky_solve(of.cross, torch.linalg.cholesky(gram)))


def _fitted(of: Moments, matrix: Tensor) -> LinearMap:
    squared = ((of.donor_gram @ matrix) * matrix).sum() - 2 * (of.cross * matrix).sum() + of.student_energy
    relative = max(float(squared), 0.0) / of.student_energy if of.student_energy else 0.0
    return LinearMap(of.donor_mean, of.student_mean, matrix, relative**0.5)
