"""From a recipe's ``losses:`` to functions of a batch, the teacher's signals and the student's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stages.objectives import LossEntry
from stages.objectives.base import schedule_factor
from stages.training.data.batch import Batch
from stages.training.objectives.base import ModelFacts, Objective, Pair
from stages.training.objectives.byte_level import ByteLevel
from stages.training.objectives.byte_targets import Bpm, Escd
from stages.training.objectives.chunk_scores import HiddenStates, alm
from stages.training.objectives.distributions import SameVocabulary, Strict
from stages.training.objectives.dpca import dpca
from stages.training.objectives.dual_space import Dskd
from stages.training.objectives.gold import Gold
from stages.training.objectives.likelihood_scoring import LikelihoodScoring
from stages.training.objectives.policy_gradient import policy_gradient
from stages.training.objectives.projected import Cdm, MinEd, XToken
from stages.training.objectives.simct import SimCt
from stages.training.objectives.sorted_distributions import MultiLevelOt, Uld
from stages.training.objectives.token_selection import selected_cross_entropy
from stages.training.objectives.tokens import CrossEntropy

__all__ = ["OBJECTIVES", "ModelFacts", "Objective", "Pair", "Term", "build_terms"]

OBJECTIVES: dict[str, Callable[[Any, Pair], Objective]] = {
    "cross_entropy": CrossEntropy,
    "alm": alm,
    "hidden_states": HiddenStates,
    "simct": SimCt,
    "dpca": dpca,
    "policy_gradient": policy_gradient,
    "same_vocabulary": SameVocabulary,
    "strict": Strict,
    "dskd": Dskd,
    "uld": Uld,
    "gold": Gold,
    "multilevel_ot": MultiLevelOt,
    "xtoken": XToken,
    "mined": MinEd,
    "cdm": Cdm,
    "bpm": Bpm,
    "escd": Escd,
    "byte_level": ByteLevel,
    "likelihood_scoring": LikelihoodScoring,
    "selected_cross_entropy": selected_cross_entropy,
}
"""Name in a recipe -> from its options and the two models to the objective."""


@dataclass(frozen=True)
class Term:
    """One objective in the training loss, under its name and with its weight.

    Attributes:
        entry: its options.
        objective: what it computes.
        teacher: which of several teachers it learns from (``Batch.teacher_number``); None learns from every batch.
        teacher_name: of that teacher, before the objective's in every metric; empty where there is one teacher.
        factor: of that teacher's losses.
    """

    entry: LossEntry
    objective: Objective
    teacher: int | None = None
    teacher_name: str = ""
    factor: float = 1.0

    @property
    def name(self) -> str:
        """The objective's name, after its teacher's where there are several."""
        return f"{self.teacher_name}/{self.entry.name}" if self.teacher_name else self.entry.name

    def learns_from(self, batch: Batch) -> bool:
        """Whether a micro-batch has anything to do with this term."""
        return self.teacher is None or self.teacher == batch.teacher_number

    def weight(self, step: int, steps: int) -> float:
        """Factor of the objective's mean at optimiser step ``step`` (from 0) of ``steps``."""
        options = self.entry.options
        return self.factor * options.weight * schedule_factor(options.weight_schedule, step, steps)


def build_terms(entries: Sequence[LossEntry], pair: Pair) -> list[Term]:
    """The terms of a recipe's ``losses:``, in order.

    Raises:
        StageError: an objective cannot work on this pair of models; names the option and the way out.
    """
    return [Term(entry, OBJECTIVES[entry.name](entry.options, pair)) for entry in entries]
