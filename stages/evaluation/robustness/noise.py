"""How models bear misspelled text: questions for a missing word, and the bits of the text itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stages.evaluation.core import Ability, Request, Watch
from stages.evaluation.robustness.excerpts import Excerpt, choose_excerpts
from stages.evaluation.robustness.missing_words import Version, make_suite, versions
from stages.evaluation.robustness.options import NoiseOptions
from stages.evaluation.robustness.perturbations import WORD, words_changed
from stages.evaluation.sections import (
    Column,
    Curve,
    Measure,
    SectionContext,
    SectionReport,
    Skipped,
    Subject,
    Table,
)
from stages.evaluation.statistics import ratio, ratio_difference
from stages.evaluation.suites.marking import ACCURACY, marks
from stages.evaluation.suites.section import SuiteSection
from stages.evaluation.windows import Document
from stages.stage import StageError

NAME = "noise"
ABOUT = (
    "Held-out text is misspelled: neighbouring letters change places (swap), a letter is left out (delete), written "
    "twice (duplicate), or becomes its neighbour on the keyboard (keyboard), words change case, letters become "
    "Cyrillic ones of the same look (homoglyph), get an accent (diacritic), a space comes into a word (spacing), "
    "letters are misread (ocr). A severity is the share of the words of four letters and more that are changed, where "
    "a kind of change can change them. Bits of misspelled text: how many more a model needs for it than for the clean "
    "text, in % of the latter. Accuracy lost: the right answers to clean questions that are lost, in % of them."
)


def sections(options: NoiseOptions, documents: Sequence[Document], context: SectionContext) -> list[Noise]:
    """The section of ``noise``.

    Raises:
        StageError: the held-out text is too short, or none.
    """
    suite = make_suite(options, documents)
    excerpts = choose_excerpts(documents, options.excerpts, options.excerpt_bytes, purpose=NAME, seed=options.seed)
    excerpts = [excerpt for excerpt in excerpts if WORD.search(excerpt.text)]
    if suite is None or not excerpts:
        raise StageError(
            "noise: data.eval has no plain text with words to ask for and to misspell; leave noise out, or add text"
        )
    return [Noise(options, SuiteSection(suite, context.references()), excerpts, context.references())]


class Noise:
    """Questions and excerpts, clean and misspelled."""

    name = NAME
    relies_on: frozenset[Ability] = frozenset({"score_continuations", "score_texts"})

    def __init__(
        self,
        options: NoiseOptions,
        questions: SuiteSection,
        excerpts: Sequence[Excerpt],
        references: Mapping[str, str],
    ) -> None:
        self._options = options
        self._versions = versions(options)
        self._questions = questions
        self._excerpts = excerpts
        self._references = references

    def score(self, subject: Subject, watch: Watch) -> dict[str, Any]:
        """``questions``: as ``asking.ask`` gives them; ``nats``: of every version of the excerpts a list, None where
        there is no number; ``problems``: of the same form."""
        answers = self._questions.score(subject, lambda share: watch(share / 2))
        requests = [Request("", text) for texts in self._texts() for text in texts]
        scores = iter(subject.scorer.score(requests, lambda share: watch(0.5 + share / 2)))
        versions_ = [[next(scores) for _ in self._excerpts] for _ in self._versions]
        return {
            "questions": answers,
            "nats": [[None if score.problem else score.nats for score in version] for version in versions_],
            "problems": [[score.problem for score in version] for version in versions_],
        }

    def _texts(self) -> list[list[str]]:
        """Of every version all excerpts."""
        return [
            [version.of(excerpt.text, self._options.seed, excerpt.id) for excerpt in self._excerpts]
            for version in self._versions
        ]

    def report(self, results: Mapping[str, Any]) -> SectionReport:
        """What misspellings cost, by kind and severity, and the questions."""
        base = self._questions.report({row: result["questions"] for row, result in results.items()})
        scored = [
            place
            for place in range(len(self._excerpts))
            if all(nats[place] is not None for result in results.values() for nats in result["nats"])
        ]
        nats = (
            {
                row: [[of_version[place] for place in scored] for of_version in result["nats"]]
                for row, result in results.items()
            }
            if scored
            else {}
        )
        credits = {row: self._credits(result["questions"]) for row, result in results.items()}
        costs = {row: self._cost(of_row) for row, of_row in nats.items()}
        losses = {row: self._loss(of_row) for row, of_row in credits.items()}
        return replace(
            base,
            title="Misspelled text",
            about=f"{ABOUT} {base.about}",
            tables=(
                self._table("Bits of misspelled text", costs, self._cost_differences(nats)),
                self._table("Accuracy lost to misspelled text", losses, {}),
                *base.tables[1:],  # the first is of all questions at once, clean and misspelled
            ),
            curves=(self._curve("More bits by severity", costs), self._curve("Accuracy lost by severity", losses)),
            skipped=tuple(self._skipped(results, scored)),
            facts={
                **base.facts,
                "excerpts scored": len(scored),
                "words changed": {self._label(version): share for version, share in self._changed().items()},
            },
            metrics={
                **base.metrics,
                **_metrics("bits", costs),
                **_metrics("accuracy_lost", losses),
            },
        )

    def _credits(self, answers: Any) -> list[list[float]]:
        """Of every version the credits of all questions."""
        credits = [mark.credit for mark in marks(self._questions.suite, answers)[ACCURACY]]
        size = len(credits) // len(self._versions)
        return [credits[start : start + size] for start in range(0, len(credits), size)]

    @property
    def _noisy(self) -> dict[str, list[int]]:
        """Column -> the versions that count in it: every kind at the highest severity, all kinds at each severity."""
        highest = self._options.severities[-1]
        kinds = {kind: [self._versions.index(Version(kind, highest))] for kind in self._options.perturbations}
        severities = {
            f"all at {severity:g}": [
                number for number, version in enumerate(self._versions) if version.kind and version.severity == severity
            ]
            for severity in self._options.severities
        }
        return {**severities, **kinds}

    def _cost(self, nats: Sequence[Sequence[float]]) -> dict[str, Measure]:
        return {name: ratio(*_more(nats, members)) for name, members in self._noisy.items()}

    def _cost_differences(
        self, nats: Mapping[str, Sequence[Sequence[float]]]
    ) -> dict[str, dict[str, dict[str, Measure]]]:
        return {
            role: {
                row: {
                    name: ratio_difference(*_more(of_row, members), *_more(nats[reference], members))
                    for name, members in self._noisy.items()
                }
                for row, of_row in nats.items()
                if row != reference
            }
            for role, reference in self._references.items()
            if reference in nats and len(nats) > 1
        }

    def _loss(self, credits: Sequence[Sequence[float]]) -> dict[str, Measure]:
        """Nothing where no clean question was answered right."""
        right = math.fsum(credits[0])
        if not right:
            return {}
        return {
            name: Measure(100 * (1 - sum(math.fsum(credits[member]) for member in members) / len(members) / right))
            for name, members in self._noisy.items()
        }

    def _table(
        self,
        title: str,
        rows: Mapping[str, Mapping[str, Measure]],
        differences: Mapping[str, Mapping[str, Mapping[str, Measure]]],
    ) -> Table:
        highest = f"at {self._options.severities[-1]:g}"
        columns = tuple(
            Column(name, "%", "lower", 1, note="" if name.startswith("all") else highest) for name in self._noisy
        )
        return Table(title, columns, rows, differences)

    def _curve(self, title: str, rows: Mapping[str, Mapping[str, Measure]]) -> Curve:
        severities = self._options.severities
        lines = {
            row: [(0.0, 0.0), *((severity, measures[f"all at {severity:g}"].value) for severity in severities)]
            for row, measures in rows.items()
            if measures
        }
        return Curve(title, "share of words changed", "% of clean", lines)

    def _label(self, version: Version) -> str:
        return f"{version.name} at {version.severity:g}"

    def _changed(self) -> dict[Version, float]:
        """Version -> share of the excerpts' words that it changes."""
        total = sum(len(WORD.findall(excerpt.text)) for excerpt in self._excerpts)
        return {
            version: round(
                sum(
                    words_changed(each.text, version.kind, version.severity, self._options.seed, each.id)
                    for each in self._excerpts
                )
                / total,
                4,
            )
            for version in self._versions
            if version.kind is not None
        }

    def _skipped(self, results: Mapping[str, Any], scored: Sequence[int]) -> list[Skipped]:
        entries = []
        for row, result in results.items():
            for place, excerpt in enumerate(self._excerpts):
                problems = [of_version[place] for of_version in result["problems"] if of_version[place]]
                if problems:
                    why = f"{problems[0]}, in {len(problems)} of {len(self._versions)} versions; it counts for no model"
                    entries.append(Skipped(f"excerpt {excerpt.id}", why, row))
        return entries


def _more(nats: Sequence[Sequence[float]], members: Sequence[int]) -> tuple[list[float], list[float]]:
    """Of each excerpt, nats beyond those of the clean text, in hundredths, mean over versions; and those of the clean
    text."""
    clean = list(nats[0])
    noisy = [sum(nats[member][place] for member in members) / len(members) for place in range(len(clean))]
    return [100 * (after - before) for after, before in zip(noisy, clean, strict=True)], clean


def _metrics(measure: str, rows: Mapping[str, Mapping[str, Measure]]) -> dict[str, float]:
    return {
        f"{row}.{measure}.{name.replace(' ', '_')}": cell.value / 100
        for row, columns in rows.items()
        for name, cell in columns.items()
    }
