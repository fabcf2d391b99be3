"""Rows of the donor mapped into the student's space."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from stages.initializers.base import InitializerOptions, WantedInput


class ProcrustesOptions(InitializerOptions):
    """The donor's row under the orthogonal map that best takes its shared tokens to the student's."""

    wanted_inputs: ClassVar[frozenset[WantedInput]] = frozenset({"donor"})

    method: Literal["procrustes"]
    scale: Literal["least_squares", "norm"] = "least_squares"
    """Factor of the map: ``least_squares`` has the least error and makes rows shorter the less the two spaces agree;
    ``norm`` keeps the root mean square norm of the student's shared tokens."""


class RidgeMapOptions(InitializerOptions):
    """The donor's row under the affine map of least squared error on the shared tokens."""

    wanted_inputs: ClassVar[frozenset[WantedInput]] = frozenset({"donor"})

    method: Literal["ridge_map"]
    ridge: float = Field(0.01, gt=0)
    """Penalty on the map's size, relative to the mean eigenvalue of the donor's Gram matrix. Raise it where there are
    few shared tokens."""
