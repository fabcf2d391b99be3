"""What every objective needs and promises: the table behind ``pipeline validate`` and docs/objectives.md.

Light: read while a recipe is validated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TeacherSignal = Literal["full", "top_k", "scores"]
"""What a teacher gives for every token: its whole distribution and hidden states; its most probable tokens and the
scores; or the scores alone, the log-probabilities of the token and of a boundary after it."""

Need = Literal["nothing", "scores", "top_k", "distribution", "hidden_states"]

GIVES: dict[TeacherSignal, frozenset[Need]] = {
    "full": frozenset({"nothing", "scores", "top_k", "distribution", "hidden_states"}),
    "top_k": frozenset({"nothing", "scores", "top_k"}),
    "scores": frozenset({"nothing", "scores"}),
}


@dataclass(frozen=True)
class Capability:
    """One objective.

    Attributes:
        objective: its name in a recipe.
        needs: the least that the teacher must give.
        vocabularies: what the two vocabularies must be to each other.
        exact: where the teacher's distribution is transferred without approximation.
        served: whether a teacher behind an API is enough, and what that must return.
        divergence: whether the loss is zero, with zero gradient, when student and teacher are one model.
        source: the paper.
    """

    objective: str
    needs: Need
    vocabularies: Literal["any", "identical", "subset", "overlapping"]
    exact: str
    served: str
    divergence: bool
    source: str

    @property
    def cached(self) -> bool:
        """Whether scores that were computed once are enough."""
        return self.needs in GIVES["top_k"]


CAPABILITIES: tuple[Capability, ...] = (
    Capability(
        "cross_entropy", "nothing", "any", "no teacher", "no teacher", divergence=False, source="maximum likelihood"
    ),
    Capability(
        "alm",
        "scores",
        "any",
        "the probability of every chunk",
        "yes: log-probabilities of the text's tokens; of a boundary too, for gamma and debias",
        divergence=True,
        source="arXiv 2503.20083",
    ),
    Capability(
        "hidden_states", "hidden_states", "any", "never", "no", divergence=True, source="arXiv 2503.20083, latents"
    ),
)

_BY_NAME = {capability.objective: capability for capability in CAPABILITIES}


def capability(objective: str) -> Capability:
    """The table's row of an objective."""
    return _BY_NAME[objective]


def usable_with(signal: TeacherSignal) -> list[str]:
    """The objectives for which a teacher's signal is enough."""
    return [each.objective for each in CAPABILITIES if each.needs in GIVES[signal]]
