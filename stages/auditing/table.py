"""The audit as text: at most 120 columns. Rows of numbers stay on one line; reasons are wrapped, never cut."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.auditing.section import Column, Section
from stages.auditing.sections import AuditResult, headline, sections

WIDTH = 120
_INDENT = "  "
_GAP = 2
"""What rich puts between two columns."""


def render(result: AuditResult) -> str:
    """All sections of ``result``; where a table is cut short, it says so. ``report.html`` has all rows."""
    return render_text(f"Audit: {headline(result.report)}", sections(result))


def render_text(heading: str, parts: Sequence[Section], *, page: str = "report.html") -> str:
    """A heading and sections, without those that say nothing; ``page`` says where rows are that it has no room for."""
    texts = [heading, *(_section(section, page) for section in parts)]
    return "\n\n".join(text for text in texts if text) + "\n"


def _section(section: Section, page: str) -> str:
    lines = [section.title]
    for sentence in section.sentences:
        lines += textwrap.wrap(
            sentence, WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT * 2, break_on_hyphens=False
        )
    lines += _table(section, page)
    return "\n".join(lines) if len(lines) > 1 else ""


def _table(section: Section, page: str) -> list[str]:
    if not section.brief:
        return []
    shown = [index for index, column in enumerate(section.columns) if column.brief]
    columns = [section.columns[index] for index in shown]
    headings = [column.heading.replace(" ", "\n", 1) if column.numeric else column.heading for column in columns]
    cells = [[row[index] for row in section.brief] for index in shown]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    of_words = not any(column.numeric for column in columns)
    for column, heading, width in zip(columns, headings, _widths(columns, headings, cells), strict=True):
        justify = "right" if column.numeric else "left"
        table.add_column(heading, justify=justify, no_wrap=not of_words, overflow="ellipsis", width=width)
    for row in section.brief:
        table.add_row(*(Text(row[index]) for index in shown))
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    console.print(table)
    lines = [_INDENT + line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]
    hidden = len(section.rows) - len(section.brief)
    return [*lines, f"{_INDENT}and {hidden} more in {page}"] if hidden else lines


def _widths(columns: Sequence[Column], headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    """Every column as wide as what is in it, words as far as the line has room."""
    wanted = [
        max(map(cell_len, (*heading.split("\n"), *texts))) for heading, texts in zip(headings, cells, strict=True)
    ]
    numbers = sum(width for column, width in zip(columns, wanted, strict=True) if column.numeric)
    room = WIDTH - len(_INDENT) - _GAP * (len(columns) - 1) - numbers
    widths = []
    for column, width in zip(columns, wanted, strict=True):
        if not column.numeric:
            width = min(width, room)
            room -= width
        widths.append(width)
    return widths
