"""What an ensemble makes of a request, and what its members would have made of it alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from stages.evaluation.core import Problem, Request, Scorer, TextScore, Watch, ignore


class Reading(NamedTuple):
    """One request.

    Attributes:
        score: the ensemble's.
        members: -log p(continuation | context) of each member, in nats; empty if there is a problem.
        disagreements: tokens (bytes, of an ensemble by bytes) of the continuation at which not all members would write
            the same; of as many as ``score.tokens`` says.
    """

    score: TextScore
    members: tuple[float, ...] = ()
    disagreements: int = 0


@runtime_checkable
class Ensemble(Scorer, Protocol):
    """A scorer that is several models.

    Attributes:
        members: their names.
    """

    members: tuple[str, ...]

    def read(self, requests: Sequence[Request], watch: Watch = ignore) -> list[Reading]:
        """One reading a request, in order."""


def unread(request: Request, problem: Problem) -> Reading:
    """A request that could not be answered."""
    return Reading(TextScore(float("nan"), len(request.continuation.encode(errors="surrogatepass")), 0, False, problem))
