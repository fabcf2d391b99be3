"""The evaluation as text: three small tables and what their columns mean."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from stages.evaluation.report import ModelResult, Report

WIDER_THAN_ANY_TABLE = 1000
"""rich would wrap cells to the width of its console; a file has none."""

Column = tuple[str, Callable[[ModelResult], float | None], str, bool]
"""Heading, value, format, and whether lower is better."""


def render(report: Report) -> str:
    """All tables of ``report`` as plain text. The best student of each column is marked with ``*``."""

    def per_domain(measure: str, format_: str, lower: bool) -> list[Column]:
        return [
            (_heading(report, domain), lambda m, d=domain: getattr(m.domains[d], measure), format_, lower)
            for domain in report.domains
        ]

    bits = per_domain("bits_per_byte", ".3f", True)
    if report.initial is not None:
        bits.append(("gap\nclosed", lambda model: model.gap_closed_mean, ".0%", False))
    bits.append(("tokens\nper byte", lambda model: model.tokens_per_byte, ".3f", True))
    parts = [
        _table("Bits per byte on held-out text", report.models, bits),
        _table("Agreement with the teacher: nats a chunk", report.models, per_domain("agreement_nats", ".3f", True)),
        _table("Agreement with the teacher: top-1", report.models, per_domain("top1", ".1%", False)),
        _legend(report),
        *(f"WARNING: {line}" for line in report.warnings),
    ]
    return "\n".join(parts) + "\n"


def _heading(report: Report, domain: str) -> str:
    if not report.trained:
        return domain
    return f"{domain}\n{'trained' if domain in report.trained else 'untrained'}"


def _table(title: str, models: Sequence[ModelResult], columns: Sequence[Column]) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    cells = []
    for heading, value, format_, lower in columns:
        table.add_column(heading, justify="right")
        cells.append(_column([value(model) for model in models], format_, lower))
    for row, model in enumerate(models):
        table.add_row(model.name, *(column[row] for column in cells))
    console = Console(file=io.StringIO(), width=WIDER_THAN_ANY_TABLE, color_system=None)
    console.print(table)
    lines = (line.rstrip() for line in console.file.getvalue().splitlines())
    return "\n".join([title, *(line for line in lines if line), ""])


def _column(values: Sequence[float | None], format_: str, lower: bool) -> list[str]:
    """Formatted ``values``, the teacher's first; the best of the students' is marked where there are several."""
    texts = ["-" if value is None else format(value, format_) for value in values]
    students = [value for value in values[1:] if value is not None]
    best = (min if lower else max)(students) if len(students) > 1 else None
    marked = [index > 0 and value is not None and value == best for index, value in enumerate(values)]
    return [("*" if mark else "") + text for text, mark in zip(texts, marked, strict=True)]


def _legend(report: Report) -> str:
    lines = [
        "* best student of the column, where there are several. Every model reads the same bytes; report.json has the",
        "  definitions.",
        "bits per byte: how well the model predicts the text, whatever its tokenizer; lower is better.",
        "nats a chunk: mean |difference of log-probability to the teacher| of the text between shared token ends;",
        "  lower is closer to the teacher.",
        "top-1: how often teacher and model would write the same next; higher is closer to the teacher.",
        "tokens per byte: how many tokens the model's tokenizer needs; lower is cheaper.",
    ]
    if report.initial is not None:
        lines.append(
            f"gap closed: share of the way from {report.initial} (0 %) to the teacher (100 %) in bits per byte, mean "
            f"over domains;\n  higher is better."
        )
        if report.no_gap:
            lines.append(
                f"  Left out, as {report.initial} is as good as the teacher there: {', '.join(report.no_gap)}."
            )
    if not report.trained:
        lines.append("trained_domains is not set in the recipe, so no domain is marked as trained.")
    return "\n".join(lines)
