"""An ensemble as one of those that the evaluation asks: its members, loaded together when it is first asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from alignment.byte_view import ByteView
from alignment.tokenizer_facts import load_tokenizer
from stages.evaluation.ensembles.byte_level import ByteEnsemble
from stages.evaluation.ensembles.means import Combination
from stages.evaluation.ensembles.options import EnsembleOptions
from stages.evaluation.ensembles.token_level import Member, TokenEnsemble
from stages.evaluation.exact_bytes.scorer import ExactByteScorer
from stages.evaluation.preflight import Preflight
from stages.evaluation.sections import SectionContext, Subject
from stages.evaluation.text_start import TextStart
from stages.stage import StageError

if TYPE_CHECKING:
    from stages.evaluation.runner import Contestant
    from stages.evaluation.windows import Document

_OF_TOKENS = "boundary crossings"
"""The check that says nothing of a model that is asked for bytes."""


class EnsembleContestant:
    """Several models of a recipe as one.

    Args:
        name: its row.
        members: in the order of the options; loaded by being asked for their subjects, and forgotten with this object.
    """

    def __init__(
        self, name: str, options: EnsembleOptions, members: Sequence[Contestant], context: SectionContext
    ) -> None:
        self.name = name
        self._options = options
        self._members = members
        self._context = context

    @cached_property
    def subject(self) -> Subject:
        """All members, loaded.

        Raises:
            StageError: a member's output head is not one that we can compute, or it cannot be asked for bytes.
        """
        combination, batch_tokens = Combination.of(self._options), self._context.batch_tokens
        subjects = [member.subject for member in self._members]
        if self._options.level == "byte":
            scorers = [ExactByteScorer.of_subject(subject, batch_tokens=batch_tokens) for subject in subjects]
            return Subject(self.name, None, None, ByteEnsemble(self.name, scorers, combination), None)
        view = self._context.views[self.name]
        scorer = TokenEnsemble(self.name, list(map(_member, subjects)), view, combination, batch_tokens=batch_tokens)
        return Subject(self.name, None, view, scorer, None)

    def examine(self, documents: Sequence[Document]) -> Preflight:
        """The preflight of every member: what falsifies a member's numbers falsifies the ensemble's."""
        of_bytes = self._options.level == "byte"
        return Preflight(
            tuple(
                replace(check, name=f"{member.name}: {check.name}")
                for member in self._members
                for check in member.examine(documents).checks
                if not (of_bytes and check.name == _OF_TOKENS)
            )
        )


def shared_views(ensembles: Mapping[str, EnsembleOptions], views: Mapping[str, ByteView]) -> dict[str, ByteView]:
    """The tokenizer that the members of each ensemble by tokens have in common.

    Raises:
        StageError: they have none.
    """
    shared = {}
    for name, options in ensembles.items():
        if options.level == "byte":
            continue
        first, *others = options.rows
        for other in others:
            if views[other].fingerprint != views[first].fingerprint:
                raise StageError(
                    f"ensembles.{name}: {first} and {other} have different tokenizers (vocabulary hashes "
                    f"{views[first].fingerprint[:12]} and {views[other].fingerprint[:12]}), so their tokens cannot be "
                    "averaged; use level: byte"
                )
        shared[name] = views[first]
    return shared


def _member(subject: Subject) -> Member:
    start = TextStart.of(load_tokenizer(subject.path, trust_remote_code=False), subject.view)
    return Member(subject.name, subject.model, start, subject.view.vocab_size)
