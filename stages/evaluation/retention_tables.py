"""What retention shows of its numbers: tables, bars, and what the columns mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from stages.evaluation.report import Report
from stages.evaluation.sections import TEACHER, Bars, Column, Measure, Table
from stages.evaluation.statistics import DocumentScore, compare, ratio

Ratio = Callable[[DocumentScore], tuple[float, float]]
"""Numerator and denominator that one document gives to a measure."""


def _bits(score: DocumentScore) -> tuple[float, float]:
    return score.nats / math.log(2), score.bytes


def _nats_to_teacher(score: DocumentScore) -> tuple[float, float]:
    return score.absolute_difference, score.chunks


def _top1_percent(score: DocumentScore) -> tuple[float, float]:
    return 100 * score.same_top1, score.chunks


def tables(report: Report) -> tuple[Table, ...]:
    """Bits per byte; and how close the models are to the teacher, where it was scored."""
    bits = _domain_table(report, "Bits per byte on held-out text", _bits, "bits per byte", better="lower")
    more = {"tokens per byte": lambda model: model.tokens_per_byte}
    columns = [Column("tokens per byte", better="lower")]
    if report.initial is not None:
        more["gap closed"] = lambda model: None if model.gap_closed_mean is None else 100 * model.gap_closed_mean
        ends = (report.initial, TEACHER)
        columns.insert(0, Column("gap closed", "%", better="higher", digits=0, measured_from=ends))
    rows = {
        model.name: {
            **bits.rows[model.name],
            **{name: Measure(value) for name, of in more.items() if (value := of(model)) is not None},
        }
        for model in report.models
    }
    first = Table(bits.title, (*bits.columns, *columns), rows, bits.differences)
    if TEACHER not in rows:
        return (first,)
    return (
        first,
        _domain_table(
            report, "Agreement with the teacher: nats a chunk", _nats_to_teacher, "nats a chunk", better="lower"
        ),
        _domain_table(report, "Agreement with the teacher: top-1", _top1_percent, "%", better="higher", digits=1),
    )


def _domain_table(report: Report, title: str, measure: Ratio, unit: str, *, better: str, digits: int = 3) -> Table:
    """One measure, a column a domain, with differences to the references.

    Where no agreement with the teacher was counted (an ensemble has no chunks) there is no cell. The teacher's own
    agreement is perfect, so differences to and from it say nothing new and are left out.
    """
    columns = tuple(Column(domain, unit, better, digits, report.note(domain)) for domain in report.domains)
    pairs = {
        name: {domain: _sides(values, measure) for domain, values in domains.items()}
        for name, domains in report.scores.items()
    }
    counted = {
        name: {domain: side for domain, side in domains.items() if all(side[1])} for name, domains in pairs.items()
    }
    sides = {name: domains for name, domains in counted.items() if domains}
    rows = {name: {domain: ratio(*side) for domain, side in domains.items()} for name, domains in sides.items()}
    comparable = sides if measure is _bits else {name: side for name, side in sides.items() if name != TEACHER}
    return Table(title, columns, rows, compare(comparable, report.references))


def _sides(values: Sequence[DocumentScore], measure: Ratio) -> tuple[list[float], list[float]]:
    pairs = [measure(value) for value in values]
    return [left for left, _ in pairs], [right for _, right in pairs]


def bars(report: Report, bits: Table) -> Bars:
    """Bits per byte, a group of bars a domain; ``bits`` is the first table."""
    values = {row: {domain: measures[domain] for domain in report.domains} for row, measures in bits.rows.items()}
    return Bars("Bits per byte by domain", "bits per byte", values)


def about(report: Report) -> str:
    """What the columns mean, for people."""
    lines = [
        "Every model reads the same bytes after the same bytes of context. Bits per byte: how well it predicts the "
        "text, whatever its tokenizer; lower is better. Nats a chunk: mean |difference of log-probability to the "
        "teacher| of the text between shared token ends; lower is closer to the teacher. Top-1: how often teacher and "
        "model would write the same next; higher is closer to the teacher. Tokens per byte: how many tokens the "
        "model's tokenizer needs; lower is cheaper. Intervals are 95 % bootstrap intervals over documents, those of "
        "differences paired."
    ]
    if report.initial is not None:
        lines.append(
            f"Gap closed: share of the way from {report.initial} (0 %) to the teacher (100 %) in bits per byte, mean "
            f"over domains; higher is better."
        )
        if report.no_gap:
            lines.append(f"Left out, as {report.initial} is as good as the teacher there: {', '.join(report.no_gap)}.")
    if not report.trained:
        lines.append("trained_domains is not set in the recipe, so no domain is marked as trained.")
    return " ".join(lines)
