"""The teacher's next-token distribution in a student vocabulary that lies inside its own."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoTokenizer

from alignment.byte_models import byte_model
from alignment.cover_encodings import NotASubset, decomposition_tree
from losses.coverings import SymbolTree
from losses.likelihood_scoring import ScoredRows, likelihood_scoring_loss, scored_student_rows
from losses.output import LossOutput
from stages.objectives.likelihood_scoring import LikelihoodScoringOptions
from stages.stage import StageError
from stages.training.data.batch import Batch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import Pair
from stages.training.objectives.coverage import with_unit_coverage


class LikelihoodScoring:
    """Divergence from the teacher's distribution over the student's tokens, summed over coverings; a token a unit."""

    teacher_reads = Reads(label=True)
    student_reads = Reads()
    auxiliary = None

    def __init__(self, options: LikelihoodScoringOptions, pair: Pair) -> None:
        """It has no options beside its weight."""
        student, teacher = pair.student, pair.teacher
        try:
            tree = decomposition_tree(
                student.view,
                teacher.view,
                byte_model(AutoTokenizer.from_pretrained(student.directory), student.view),
                student_roles=student.roles,
                teacher_roles=teacher.roles,
                directory=pair.cache,
            )
        except NotASubset as error:
            raise StageError(
                f"likelihood_scoring needs a student vocabulary that lies inside the teacher's: {error}. Use bpm, "
                "which takes any two vocabularies"
            ) from None
        self._tree = SymbolTree(**{name: torch.from_numpy(array) for name, array in tree.arrays().items()})

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        rows = self._rows(batch, teacher)
        return torch.tensor([len(rows.student)], dtype=torch.float64, device=rows.student.device)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        loss = likelihood_scoring_loss(teacher.predictions, student.head, self._rows(batch, teacher), self._tree)
        return with_unit_coverage(loss, batch)

    def _rows(self, batch: Batch, teacher: Signals) -> ScoredRows:
        self._tree = self._tree.to(batch.student.ids.device)
        return scored_student_rows(batch.teacher, batch.student, batch.num_chunks, self._tree, teacher.label_logp)
