"""What the engine asks of an objective, and what it tells it about the two models.

Every objective reports additive *statistics* before the student runs: a float64 vector whose first entry is its number
of units. The engine sums it over micro-batches and processes, so that each loss is divided by its global count and a
split of the batch changes nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from alignment.byte_view import ByteView
from alignment.common_vocabulary import CommonVocabulary, common_vocabulary
from alignment.special_tokens import Roles
from alignment.table_cache import cached_arrays
from losses.output import LossOutput
from stages.training.data.batch import Batch
from stages.training.models import Reads, Signals


class Objective(Protocol):
    """One term of the training loss.

    Attributes:
        teacher_reads, student_reads: what it takes from either model beside hidden states and head.
        auxiliary: parameters of its own that are trained beside the student and thrown away; None for none.
    """

    teacher_reads: Reads
    student_reads: Reads
    auxiliary: nn.Module | None

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        """Additive facts known before the student runs: float64 [1 + anything]; the first is the number of units."""

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        """Sum over this micro-batch's units, given the statistics of the whole step."""


@dataclass(frozen=True)
class ModelFacts:
    """What an objective may know of a model before training.

    Attributes:
        directory: its ModelArtifact.
        view: its tokenizer.
        roles: its special tokens by role (``special_roles_and_turns``).
        width: of its hidden states.
        layers: number of its hidden states, the embedding included.
        output_weight: [V or more, width] its output embeddings, as loaded; not to be changed. None for a teacher that
            is known by its scores alone.
    """

    directory: Path
    view: ByteView
    roles: Roles
    width: int
    layers: int
    output_weight: Tensor | None


@dataclass(frozen=True)
class Pair:
    """The two models of a transfer.

    Attributes:
        teacher: None where no objective needs one.
        cache: where tables of the pair are kept (``alignment.table_cache``); None for nowhere.
        seed: of everything that an objective draws, its own parameters for instance.
    """

    teacher: ModelFacts | None
    student: ModelFacts
    cache: Path | None
    seed: int

    @property
    def fingerprint(self) -> str:
        """sha256 in hex of both tokenizers and their roles: of all that a table of the pair is made from."""
        digest = hashlib.sha256()
        for model in (self.teacher, self.student):
            digest.update(f"{model.view.fingerprint} {sorted(model.roles.items())} ".encode())
        return digest.hexdigest()

    def shared_tokens(self) -> CommonVocabulary:
        """The tokens that both vocabularies have."""
        teacher, student = self.teacher, self.student

        def build() -> dict[str, np.ndarray]:
            return vars(common_vocabulary(teacher.view, student.view, teacher.roles, student.roles))

        return CommonVocabulary(**cached_arrays(self.cache, "shared-1", self.fingerprint, build))
