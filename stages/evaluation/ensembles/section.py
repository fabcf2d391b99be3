"""The section ``ensembles``: what each ensemble makes of the held-out text beside its members, the best one of them and
the best one of each document, and how often they disagree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.evaluation.comparison import prepare
from stages.evaluation.core import Ability, Watch
from stages.evaluation.ensembles.options import EnsembleOptions
from stages.evaluation.ensembles.reading import Ensemble
from stages.evaluation.preflight import lost_domains
from stages.evaluation.sections import (
    Bars,
    Column,
    Measure,
    Section,
    SectionContext,
    SectionReport,
    Skipped,
    Subject,
    Table,
)
from stages.evaluation.statistics import ratio, ratio_difference
from stages.evaluation.windows import Document
from stages.stage import StageError

ABOUT = (
    "Several models as one, on the windows of retention. A member's bits per byte are those that it has inside the "
    "ensemble: by tokens as in retention; by bytes from its exact next-byte distributions. Those count all encodings "
    "and begin each window with the token that begins a text, so compare an ensemble by bytes with its members here, "
    "and not with their rows in retention. Best member: the one that is best on all the text, which one cannot know "
    "before. Oracle: the best member of each document. Against best: the ensemble minus the best member, with a paired "
    "interval. Disagreement: how often not all members would write the same next token (by bytes: byte). In proxy "
    "tuning the base, the expert and the anti-expert are the members. {means}"
)
MEANS = {
    "arithmetic": "the mean of probabilities at every step",
    "geometric": "the normalised product of probabilities at every step",
    "logit": "the softmax of mean logits, which is the geometric mean",
    "mixture": "the mean of the probabilities of whole windows",
}
WHOLE, BEST, ORACLE, AGAINST, DIFFER = "ensemble", "best member", "oracle", "against best", "disagreement"


class Ensembles:
    """All ensembles of a recipe."""

    name = "ensembles"
    relies_on: frozenset[Ability] = frozenset({"score_texts"})

    def __init__(
        self, options: Mapping[str, EnsembleOptions], documents: Sequence[Document], context: SectionContext
    ) -> None:
        views = {row: view for row, view in context.views.items() if not lost_domains(documents, context.changed[row])}
        if not views:
            raise StageError("ensembles: no tokenizer spells the held-out text")
        comparison = prepare(views, documents, context.window_bytes)
        self._options = options
        self._documents = comparison.documents
        self._windows = [span.document for span in comparison.spans]
        self._requests = comparison.requests()

    def score(self, subject: Subject, watch: Watch) -> dict[str, Any] | None:
        """Of every window ``nats``, those of the ``alone`` members, ``symbols`` and ``disagreements``, or None where it
        could not be asked; ``problems``: reason -> windows. None for a model that is no ensemble.

        Raises:
            StageError: no window can be scored.
        """
        if not isinstance(subject.scorer, Ensemble):
            return None
        readings = subject.scorer.read(self._requests, watch)
        problems = Counter(reading.score.problem for reading in readings if reading.score.problem is not None)
        if problems.total() == len(readings):
            raise StageError(f"none of {len(readings)} windows has a score: {', '.join(problems)}")
        windows = [
            None
            if reading.score.problem is not None
            else {
                "nats": reading.score.nats,
                "alone": list(reading.members),
                "symbols": reading.score.tokens,
                "disagreements": reading.disagreements,
            }
            for reading in readings
        ]
        return {"members": list(subject.scorer.members), "windows": windows, "problems": dict(problems)}

    def report(self, results: Mapping[str, Any]) -> SectionReport:
        """A row an ensemble, and a table of the members of each."""
        sums = {row: self._sums(result) for row, result in results.items() if result is not None}
        if not sums:
            return SectionReport(self.name, "Ensembles", "No ensemble could be asked.")
        rows = {row: _measures(found) for row, found in sums.items()}
        columns = (
            Column(WHOLE, "bits per byte", "lower"),
            Column(BEST, "bits per byte"),
            Column(ORACLE, "bits per byte"),
            Column(AGAINST, "bits per byte", "lower", digits=4),
            Column(DIFFER, "%", digits=1),
        )
        members = {row: _by_member(row, results[row]["members"], found) for row, found in sums.items()}
        return SectionReport(
            name=self.name,
            title="Ensembles",
            about=ABOUT.format(means=" ".join(self._describe(row) for row in sums)),
            tables=(
                Table("Ensembles on held-out text", columns, rows),
                *(self._members_table(row, results[row]["members"], found) for row, found in sums.items()),
            ),
            bars=(Bars("Members and ensembles", "bits per byte", members),),
            skipped=tuple(
                Skipped(f"{count} of {len(self._requests)} windows", reason, row)
                for row, result in results.items()
                if result is not None
                for reason, count in result["problems"].items()
            ),
            facts={
                "windows": len(self._requests),
                "documents": len(self._documents),
                **{row: options.model_dump(mode="json", exclude_none=True) for row, options in self._options.items()},
            },
            metrics={
                f"{row}.{name}": named[column].value
                for row, named in rows.items()
                for name, column in (
                    ("bits_per_byte", WHOLE),
                    ("best_member", BEST),
                    ("oracle", ORACLE),
                    ("against_best", AGAINST),
                    ("disagreement", DIFFER),
                )
            },
        )

    def _describe(self, row: str) -> str:
        options = self._options[row]
        if options.proxy is not None:
            return f"{row}: {options.proxy.base} moved by {options.proxy.expert} over {options.proxy.anti}."
        weights = f" with weights {', '.join(f'{weight:g}' for weight in options.weights)}" if options.weights else ""
        return f"{row}: {MEANS[options.mean or 'arithmetic']}{weights}."

    def _sums(self, result: Mapping[str, Any]) -> _Sums:
        """Over the windows of each document that has one with a score."""
        found: dict[int, np.ndarray] = {}
        for document, request, window in zip(self._windows, self._requests, result["windows"], strict=True):
            if window is None:
                continue
            size = len(request.continuation.encode())
            values = [size, window["nats"], window["symbols"], window["disagreements"], *window["alone"]]
            found[document] = found.get(document, 0) + np.array(values, dtype=np.float64)
        return _Sums([self._documents[document].domain for document in found], np.stack(list(found.values())))

    def _members_table(self, row: str, members: Sequence[str], sums: _Sums) -> Table:
        """Bits per byte of the members and the ensemble, by domain."""
        domains = list(dict.fromkeys(sums.domains))
        bits = dict(zip((*members, row), (*sums.members, sums.whole), strict=True))
        rows = {
            name: {
                domain: ratio(*(values[[own == domain for own in sums.domains]] for values in (of_name, sums.bytes)))
                for domain in domains
            }
            for name, of_name in bits.items()
        }
        return Table(f"Members of {row}", tuple(Column(name, "bits per byte", "lower") for name in domains), rows)


class _Sums:
    """Sums over the windows of each of N documents.

    Args:
        domains: of the documents.
        values: float64 [N, 4 + members]: bytes, nats of the ensemble, symbols, disagreements, nats of the members.
    """

    def __init__(self, domains: Sequence[str], values: np.ndarray) -> None:
        self.domains = domains
        self.bytes, nats, self.symbols, self.disagreements = values.T[:4]
        self.whole = nats / math.log(2)  # bits
        self.members = values.T[4:] / math.log(2)

    @property
    def best(self) -> np.ndarray:
        """Bits of each document under the member that is best on all of them."""
        return min(self.members, key=np.sum)


def _measures(sums: _Sums) -> dict[str, Measure]:
    return {
        WHOLE: ratio(sums.whole, sums.bytes),
        BEST: ratio(sums.best, sums.bytes),
        ORACLE: ratio(sums.members.min(0), sums.bytes),
        AGAINST: ratio_difference(sums.whole, sums.bytes, sums.best, sums.bytes),
        DIFFER: ratio(100 * sums.disagreements, sums.symbols),
    }


def _by_member(row: str, members: Sequence[str], sums: _Sums) -> dict[str, Measure]:
    return {
        name: ratio(bits, sums.bytes) for name, bits in zip((*members, row), (*sums.members, sums.whole), strict=True)
    }


def sections(
    options: Mapping[str, EnsembleOptions], documents: Sequence[Document], context: SectionContext
) -> list[Section]:
    """The section of ``ensembles``; none without plain text.

    Raises:
        StageError: no tokenizer spells the text.
    """
    return [Ensembles(options, documents, context)] if documents else []
