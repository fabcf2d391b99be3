"""Rows that say nothing of the token they are for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.initializers.base import InitializerOptions


class ZeroOptions(InitializerOptions):
    """Zeros. As an output row that is logit 0, which may beat every trained token."""

    method: Literal["zero"]


class MeanOptions(InitializerOptions):
    """The mean of all of the student's rows."""

    method: Literal["mean"]


class NormalOptions(InitializerOptions):
    """Draws from a normal distribution with the mean and the population variance of the student's rows in each
    dimension."""

    method: Literal["normal"]


class MvnOptions(InitializerOptions):
    """Draws from a normal distribution with the mean and the covariance of the student's rows (Hewitt 2021)."""

    method: Literal["mvn"]
    covariance_scale: float = Field(1e-5, gt=0)
    """Factor of the covariance. The default, Hewitt's, stays close to the mean row; 1 spreads as the old rows do."""
    ridge: float = Field(1e-6, gt=0, le=1)
    """Added to every variance, as a share of their mean, so that the covariance can be factorised."""


class CopyOptions(InitializerOptions):
    """The row of one token of the student for every new token."""

    method: Literal["copy"]
    token: str | int | None = None
    """That token: a special token as its string, any other as its text, or an id. None takes the student's token for
    unknown text, or its end of text if it has none."""
