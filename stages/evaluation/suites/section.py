"""A suite as a section of the evaluation's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.evaluation.core import Ability, Watch
from stages.evaluation.sections import Item, SectionContext, SectionReport, Subject
from stages.evaluation.suites.asking import ask
from stages.evaluation.suites.marking import ACCURACY, EXACT_MATCH, Mark, baselines, marks, right_answer_nats
from stages.evaluation.suites.options import SuitesOptions
from stages.evaluation.suites.questions import Suite
from stages.evaluation.suites.registry import make_suite
from stages.evaluation.suites.tables import Row, bars, flat_metrics, group_tables, key_table, warnings
from stages.stage import StageError


def sections(options: SuitesOptions, documents: Sequence[Any], context: SectionContext) -> list[SuiteSection]:
    """One section for each suite that the recipe names.

    Raises:
        StageError: a suite is asked for fewer questions than it has kinds of them.
    """
    references = context.references()
    return [SuiteSection(make_suite(name, chosen, "test"), references) for name, chosen in options.chosen().items()]


@dataclass(frozen=True)
class SuiteSection:
    """Asks a suite's questions of every model.

    Attributes:
        references: what each measure is compared with: how to call it -> row name.
    """

    suite: Suite
    references: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.suite.name

    @property
    def relies_on(self) -> frozenset[Ability]:
        writes = "generation" in self.suite.forms
        return frozenset({"score_continuations", "generate"} if writes else {"score_continuations"})

    def score(self, subject: Subject, watch: Watch) -> dict[str, Any]:
        """The model's answers, as ``asking.ask`` gives them."""
        return ask(self.suite, subject.scorer, watch)

    def report(self, results: Mapping[str, Any]) -> SectionReport:
        """What is shown of the suite.

        Raises:
            StageError: a kept result is of other questions.
        """
        suite = self.suite
        digest = suite.questions_digest
        strangers = [name for name, answers in results.items() if answers["questions"] != digest]
        if strangers:
            raise StageError(
                f"{suite.name}: the kept answers of {', '.join(strangers)} are to other questions than those of this "
                "version; run the stage with --restart"
            )
        rows = {
            name: Row(marks(suite, answers), right_answer_nats(suite, answers)) for name, answers in results.items()
        }
        references = {role: row for role, row in self.references.items() if row in rows}
        without_reading = baselines(suite) if "choice" in suite.forms else {}
        return SectionReport(
            name=suite.name,
            title=suite.title,
            about=f"{suite.about} {_policy(without_reading)}".strip(),
            tables=(key_table(suite, rows, references), *group_tables(suite, rows, references)),
            bars=tuple(bars(suite, rows)),
            items=tuple(_items(suite, {name: row.marks for name, row in rows.items()})),
            warnings=tuple(warnings(suite, rows)),
            facts=_facts(suite, without_reading),
            metrics=flat_metrics(suite, rows),
        )


def _policy(without_reading: Mapping[str, float]) -> str:
    if not without_reading:
        return ""
    shares = {name: f"{100 * share:.1f} %" for name, share in without_reading.items()}
    return (
        f"Chance is {shares['chance']}; always the first option scores {shares['first']}, always the shortest "
        f"{shares['shortest']}, always the longest {shares['longest']}. Accuracy goes by nats, accuracy per byte by "
        "nats a byte; equally good options share the credit. A question that a model cannot be asked counts as wrong "
        "and is listed with its reason. Intervals are 95 %: Wilson's for shares, paired bootstrap over questions for "
        "differences."
    )


def _facts(suite: Suite, without_reading: Mapping[str, float]) -> dict[str, Any]:
    return {
        "version": suite.version,
        "settings": dict(suite.settings),
        "settings_sha256": suite.settings_digest,
        "questions_sha256": suite.questions_digest,
        "questions": len(suite.questions),
        "distinct_questions": suite.distinct_questions,
        **({"accuracy_without_reading": dict(without_reading)} if without_reading else {}),
    }


def _items(suite: Suite, rows: Mapping[str, Mapping[str, Sequence[Mark]]]) -> list[Item]:
    """Every question in each of its forms, and what every model answered. What is chosen is told by nats."""
    forms = {"choice": ACCURACY, "generation": EXACT_MATCH}
    items = []
    for form in suite.forms:
        for number, question in enumerate(suite.questions):
            answered = {name: of_row[forms[form]][number] for name, of_row in rows.items()}
            items.append(
                Item(
                    id=f"{question.id}/{form}",
                    groups={**question.groups, "form": form},
                    prompt=question.prompt,
                    gold=question.answer.strip(),
                    answers={name: mark.answer for name, mark in answered.items()},
                    correct={
                        name: None if mark.problem else math.isclose(mark.credit, 1) for name, mark in answered.items()
                    },
                    problems={name: mark.problem for name, mark in answered.items() if mark.problem},
                )
            )
    return items
