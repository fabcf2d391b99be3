"""The student's own base model as its teacher: one copy of the weights, with the adapter off while it teaches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from torch import nn

from stages.sharded import is_split, whole
from stages.training.adapters.adapters import adapted_layers
from stages.training.data.batch import Batch
from stages.training.models import ScoringModel, Signals


@dataclass(frozen=True)
class Vocabulary:
    """What of a causal language model an adapter does not cover: the modules with a row for each token.

    Attributes:
        embedding: of the input.
        head: the output head; shares the embedding's weight in a tied model.
    """

    embedding: nn.Module
    head: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The modules of ``model`` itself."""
        return cls(model.get_input_embeddings(), model.get_output_embeddings())

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of both, each once."""
        found = {id(p): p for module in (self.embedding, self.head) for p in module.parameters()}
        return list(found.values())

    def frozen_copy(self) -> Self:
        """The same rows in other memory, whole and never to change, tied if these are. Collective under ZeRO-3."""
        with whole(self.parameters):
            copies = {id(p): nn.Parameter(p.detach().clone(), requires_grad=False) for p in self.parameters}
        return type(self)(copy.deepcopy(self.embedding, copies), copy.deepcopy(self.head, copies))

    def put_into(self, model: nn.Module) -> None:
        """Make ``model`` use these modules."""
        model.set_input_embeddings(self.embedding)
        model.set_output_embeddings(self.head)


@dataclass(frozen=True)
class SelfTeacher:
    """Scores with the student as it was before training; a ``Teacher``.

    Attributes:
        student: the student in training, with an adapter.
        scoring: reads what objectives take from a teacher, through the student's own layers.
        vocabulary: the input embedding and the output head as they were before training, where these train; None where
            they are frozen.
    """

    student: ScoringModel
    scoring: ScoringModel
    vocabulary: Vocabulary | None

    @classmethod
    def of(cls, student: ScoringModel, scoring: ScoringModel) -> Self:
        """The teacher inside ``student``, before its first step and with what is to train already chosen.

        Args:
            scoring: reads the same model.
        """
        vocabulary = Vocabulary.of(student.model)
        if any(parameter.requires_grad for parameter in vocabulary.parameters):
            return cls(student, scoring, vocabulary.frozen_copy())
        if is_split(student.model):
            scoring.keep_output_matrix()  # what it tells is read long after the layers have run
        return cls(student, scoring, None)

    @property
    def network(self) -> nn.Module:
        return self.student.model

    def score(self, batch: Batch) -> Signals:
        with self._before_training():
            return self.scoring.score(batch.teacher)

    @contextmanager
    def _before_training(self) -> Iterator[None]:
        """The student without its adapter and without what it has learned of its vocabulary, in evaluation mode."""
        model = self.student.model
        trained, training = Vocabulary.of(model), self.student.training
        layers = adapted_layers(model).values()
        for layer in layers:
            layer.enable_adapters(False)
        if self.vocabulary is not None:
            self.vocabulary.put_into(model)
        self.student.eval()
        try:
            yield
        finally:
            self.student.train(training)
            trained.put_into(model)
            for layer in layers:
                layer.enable_adapters(True)
