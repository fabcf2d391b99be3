"""The numbers of a suite's section: accuracies with intervals, over all and by group, and their differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from stages.evaluation.sections import Bars, Column, Measure, Table
from stages.evaluation.statistics import ratio, ratio_difference
from stages.evaluation.suites.marking import ACCURACY, ACCURACY_BYTES, EXACT_MATCH, Mark, measures
from stages.evaluation.suites.questions import Question, Suite

T = TypeVar("T")

Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""
LABELS = {ACCURACY: "accuracy", ACCURACY_BYTES: "accuracy per byte", EXACT_MATCH: "exact match"}
MOST_REPEATED = 0.02
"""Share of questions that may be there before without a warning."""
SCORE, TIES, ANSWER_BITS, UNANSWERED = "score", "ties", "right answer", "not answered"


@dataclass(frozen=True)
class Row:
    """One model's answers.

    Attributes:
        marks: measure -> one mark a question.
        right_nats: of the right answer to every question, None where there is no number.
    """

    marks: Mapping[str, Sequence[Mark]]
    right_nats: Sequence[float | None]

    def credits(self, measure: str) -> list[float]:
        """One credit a question."""
        return [mark.credit for mark in self.marks[measure]]

    def unanswered(self) -> int:
        """Questions that could not be asked in one form or another."""
        return sum(any(mark.problem for mark in both) for both in zip(*self.marks.values(), strict=True))


def wilson(successes: float, count: int) -> Measure:
    """A share of ``count`` with its 95 % Wilson interval; ``successes`` may hold shares of ties."""
    share = successes / count
    centre = (share + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
    half = Z95 / (1 + Z95**2 / count) * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    return Measure(share, max(0.0, centre - half), min(1.0, centre + half))


def normalised(accuracy: float, chance: float) -> float:
    """Accuracy on a scale where chance is 0 and all right is 1: 0.25 -> 0, 0.85 -> 0.80 of four options."""
    return (accuracy - chance) / (1 - chance)


def key_table(suite: Suite, rows: Mapping[str, Row], references: Mapping[str, str]) -> Table:
    """Every measure over all questions. ``references``: how it is called -> row."""
    columns = [Column(LABELS[measure], "%", "higher", 1) for measure in measures(suite)]
    if "choice" in suite.forms:
        columns += [Column(SCORE, "%", "higher", 1, note="chance 0"), Column(TIES, "%", digits=1)]
    columns += [Column(ANSWER_BITS, "bits/byte", "lower", 3), Column(UNANSWERED, "questions", digits=0)]
    return Table(
        title=f"{suite.title}: all {len(suite.questions):,} questions",
        columns=tuple(columns),
        rows={name: _key_measures(suite, row) for name, row in rows.items()},
        differences=_against(references, rows, partial(_key_differences, suite)),
    )


def group_tables(suite: Suite, rows: Mapping[str, Row], references: Mapping[str, str]) -> Iterator[Table]:
    """Each measure by each group that has several values."""
    for group, values in suite.groups.items():
        members = _members(suite.questions, group, values)
        if len(members) < 2:
            continue
        for measure in measures(suite):
            credits = {name: row.credits(measure) for name, row in rows.items()}
            yield Table(
                title=f"{suite.title}: {LABELS[measure]} by {group}",
                columns=tuple(
                    Column(value, "%", "higher", 1, note=f"{len(places)} questions")
                    for value, places in members.items()
                ),
                rows={name: _by_group(own, members) for name, own in credits.items()},
                differences=_against(references, credits, partial(_group_differences, members)),
            )


def bars(suite: Suite, rows: Mapping[str, Row]) -> Iterator[Bars]:
    """The plainest measure by each group that has several values."""
    measure = measures(suite)[0]
    for group, values in suite.groups.items():
        members = _members(suite.questions, group, values)
        if len(members) > 1:
            shares = {name: _by_group(row.credits(measure), members) for name, row in rows.items()}
            yield Bars(title=f"{suite.title}: {LABELS[measure]} by {group}", unit="%", values=shares)


def flat_metrics(suite: Suite, rows: Mapping[str, Row]) -> dict[str, float]:
    """``<row>.<measure>`` and ``<row>.<measure>.<value of the first group>``, shares in [0, 1]."""
    metrics: dict[str, float] = {}
    first, values = next(iter(suite.groups.items()))
    members = _members(suite.questions, first, values)
    for name, row in rows.items():
        for measure in row.marks:
            credits = row.credits(measure)
            metrics[f"{name}.{measure}"] = sum(credits) / len(credits)
            for value, places in members.items():
                metrics[f"{name}.{measure}.{value}"] = sum(credits[place] for place in places) / len(places)
        if "choice" in suite.forms:
            metrics[f"{name}.score"] = normalised(metrics[f"{name}.{ACCURACY}"], suite.chance)
        metrics[f"{name}.unanswered"] = row.unanswered()
    return metrics


def warnings(suite: Suite, rows: Mapping[str, Row]) -> Iterator[str]:
    """What a reader must know before comparing models."""
    count = len(suite.questions)
    for name, row in rows.items():
        problems = Counter(
            mark.problem.split(":")[0] for marks in row.marks.values() for mark in marks if mark.problem is not None
        )
        if problems:
            yield (
                f"{suite.title}: {name} could not be asked {row.unanswered():,} of {count:,} questions "
                f"({', '.join(problems)}); they count as wrong"
            )
        ties = sum(mark.tied for mark in row.marks.get(ACCURACY, ()))
        if ties:
            yield f"{suite.title}: {name} gives several options the same probability in {ties:,} of {count:,} questions"
    distinct = suite.distinct_questions
    if distinct < (1 - MOST_REPEATED) * count and not suite.repeats:
        yield (
            f"{suite.title}: only {distinct:,} of {count:,} questions are different ones, so the intervals are too "
            "narrow; ask fewer"
        )
    if "choice" in suite.forms:
        guessing = [name for name, row in rows.items() if _is_chance(row, suite)]
        if guessing:
            yield (
                f"{suite.title}: {', '.join(guessing)} cannot be told from guessing "
                f"(chance {100 * suite.chance:.1f} % is within the interval of its accuracy)"
            )


def _is_chance(row: Row, suite: Suite) -> bool:
    measure = _share(row.credits(ACCURACY))
    return measure.low <= suite.chance <= measure.high


def _members(questions: Sequence[Question], group: str, values: Sequence[str]) -> dict[str, list[int]]:
    """Value -> numbers of its questions, for values that have some."""
    members: dict[str, list[int]] = {value: [] for value in values}
    for number, question in enumerate(questions):
        members[question.groups[group]].append(number)
    return {value: places for value, places in members.items() if places}


def _share(credits: Sequence[float]) -> Measure:
    return wilson(math.fsum(credits), len(credits))


def _mapped(measure: Measure, change: Callable[[float], float]) -> Measure:
    """The measure on another, ascending scale."""
    ends = (None if end is None else change(end) for end in (measure.low, measure.high))
    return Measure(change(measure.value), *ends, measure.too_few)


def _percent(measure: Measure) -> Measure:
    return _mapped(measure, lambda value: 100 * value)


def _difference(own: Sequence[float], reference: Sequence[float]) -> Measure:
    ones = [1.0] * len(own)
    return _percent(ratio_difference(own, ones, reference, ones))


def _by_group(credits: Sequence[float], members: Mapping[str, Sequence[int]]) -> dict[str, Measure]:
    return {value: _percent(_share([credits[place] for place in places])) for value, places in members.items()}


def _against(
    references: Mapping[str, str], rows: Mapping[str, T], difference: Callable[[T, T], Mapping[str, Measure]]
) -> dict[str, dict[str, Mapping[str, Measure]]]:
    """Reference -> row name -> the row's differences to it, for every row but the reference itself."""
    return {
        role: {name: difference(row, rows[reference]) for name, row in rows.items() if name != reference}
        for role, reference in references.items()
    }


def _group_differences(
    members: Mapping[str, Sequence[int]], own: Sequence[float], reference: Sequence[float]
) -> dict[str, Measure]:
    return {
        value: _difference([own[place] for place in places], [reference[place] for place in places])
        for value, places in members.items()
    }


def _key_measures(suite: Suite, row: Row) -> dict[str, Measure]:
    found = {LABELS[measure]: _percent(_share(row.credits(measure))) for measure in row.marks}
    if "choice" in suite.forms:
        score = _mapped(_share(row.credits(ACCURACY)), lambda value: normalised(value, suite.chance))
        ties = sum(mark.tied for mark in row.marks[ACCURACY])
        found |= {SCORE: _percent(score), TIES: Measure(100 * ties / len(suite.questions))}
    known = [number for number, nats in enumerate(row.right_nats) if nats is not None]
    if known:
        found[ANSWER_BITS] = ratio(*_bits_and_bytes(suite, row, known))
    return {**found, UNANSWERED: Measure(row.unanswered())}


def _key_differences(suite: Suite, row: Row, reference: Row) -> dict[str, Measure]:
    found = {LABELS[measure]: _difference(row.credits(measure), reference.credits(measure)) for measure in row.marks}
    known = [
        number for number, both in enumerate(zip(row.right_nats, reference.right_nats, strict=True)) if None not in both
    ]
    if known:
        sides = (_bits_and_bytes(suite, side, known) for side in (row, reference))
        found[ANSWER_BITS] = ratio_difference(*(values for side in sides for values in side))
    return found


def _bits_and_bytes(suite: Suite, row: Row, numbers: Sequence[int]) -> tuple[list[float], list[float]]:
    """Bits and bytes of the right answers to questions that have numbers."""
    bits = [row.right_nats[number] / math.log(2) for number in numbers]
    return bits, [float(len(suite.questions[number].answer.encode())) for number in numbers]
