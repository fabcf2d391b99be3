"""The audit's plots as SVG elements for a page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignment.audit.report import AuditReport, SuppressedKind, TextSlice
from stages.pages import svg

TEACHER_COLOUR = "#3b6fb6"
STUDENT_COLOUR = "#e07a3f"
_OTHER_COLOUR = "#5b8c5a"

_SMALLEST_SHARE = 0.001
"""Classes and scripts with less of the text than this are only in the tables."""


def text_plot(report: AuditReport) -> str:
    """Per domain, class and script: tokens a byte of both sides, one-to-one text and fused chunks."""
    slices = [item for item in _slices(report) if item.share and item.share >= _SMALLEST_SHARE]
    names = [item.name for item in slices]
    with svg.style("text"):
        figure = Figure(figsize=(10, 1.2 + 0.3 * len(slices)), layout="constrained")
        fertility, one_to_one, fused = figure.subplots(1, 3, sharey=True)
        rows = np.arange(len(slices))
        fertility.barh(
            rows - 0.2, _values(slices, "teacher_tokens_per_byte"), 0.4, color=TEACHER_COLOUR, label="teacher"
        )
        fertility.barh(
            rows + 0.2, _values(slices, "student_tokens_per_byte"), 0.4, color=STUDENT_COLOUR, label="student"
        )
        fertility.set(title="tokens a byte", yticks=rows, yticklabels=names)
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        fertility.invert_yaxis()
        _shares(one_to_one, rows, _values(slices, "one_to_one"), "text in 1:1 chunks")
        _shares(fused, rows, _values(slices, "fused"), "chunks fused by ALM's γ rule")
        return svg.element(
            figure, "text", "Bars per domain, class of text and script; the table below has the numbers."
        )


def suppression_plot(kinds: Sequence[SuppressedKind]) -> str:
    """How much of the student's text a loss on the common vocabulary pushes down, by kind of token."""
    with svg.style("suppression"):
        figure = Figure(figsize=(10, 0.9 + 0.3 * len(kinds)), layout="constrained")
        axes = figure.add_subplot()
        rows = np.arange(len(kinds))
        axes.barh(rows, [kind.frequency for kind in kinds], 0.6, color=STUDENT_COLOUR)
        axes.set(title="share of the student's tokens that are pushed down", yticks=rows)
        axes.set_yticks(rows, [kind.kind for kind in kinds])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2%}")
        axes.invert_yaxis()
        return svg.element(figure, "suppression", "Bars per kind of token; the table below has the numbers.")


def _slices(report: AuditReport) -> tuple[TextSlice, ...]:
    domains = report.domains if len(report.domains) > 1 else ()
    return (report.overall, *domains, *report.classes, *report.scripts, *report.prose_and_code)


def _values(slices: Sequence[TextSlice], field: str) -> list[float]:
    return [getattr(item, field) or 0.0 for item in slices]


def _shares(axes: Axes, rows: np.ndarray, values: Sequence[float], title: str) -> None:
    axes.barh(rows, values, 0.6, color=_OTHER_COLOUR)
    axes.set(title=title, xlim=(0, 1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
