"""The evaluation as text: the tables of all sections, what was skipped, and what the columns mean."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.evaluation.page.tables import Cell, section_rows, without_interval

WIDER_THAN_ANY_TABLE = 1000
"""rich would wrap cells to the width of its console; a file has none."""
LINE = 119
MOST_SKIPPED = 20
"""Entries listed for each section; the others are counted."""

_MARKS = {"better": "+", "worse": "-", "other": "!", "": ""}


def render(report: Mapping[str, Any]) -> str:
    """All tables of ``report`` (the content of ``report.json``) as plain text."""
    parts = [
        "* best model of the column beside the teacher. Lines `vs` give the difference to another row; an interval of",
        "  it that leaves out zero is marked (+) if that is better, (-) if it is worse, (!) if it is neither.",
        "  report.html and report.json have the intervals, and report.json every number behind them.",
        "",
    ]
    for section in report["sections"]:
        parts += _section(section)
    parts += _failed_checks(report["preflight"])
    return "\n".join(parts).rstrip() + "\n"


def _section(section: Mapping[str, Any]) -> Iterator[str]:
    for table in section["tables"]:
        yield _table(table)
        if note := without_interval(table):
            yield textwrap.fill(note, LINE, initial_indent=" ", subsequent_indent=" ")
        yield ""
    yield textwrap.fill(f"{section['title']}. {section['about']}", LINE, subsequent_indent="  ")
    for line in section["warnings"]:
        yield textwrap.fill(f"WARNING: {line}", LINE, subsequent_indent="  ")
    skipped = section["skipped"]
    for entry in skipped[:MOST_SKIPPED]:
        whom = f" of {entry['model']}" if entry["model"] else ""
        yield textwrap.fill(f"skipped: {entry['what']}{whom}: {entry['why']}", LINE, subsequent_indent="  ")
    if len(skipped) > MOST_SKIPPED:
        yield f"skipped: {len(skipped) - MOST_SKIPPED} more; report.json lists them"
    yield ""


def _table(content: Mapping[str, Any]) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    for column in content["columns"]:
        table.add_column(_heading(column), justify="right")
    for row in section_rows(content):
        label = row.label if row.reference is None else f"  vs {row.reference}"
        table.add_row(Text(label), *(Text(_shown(cell)) for cell in row.cells))
    console = Console(file=io.StringIO(), width=WIDER_THAN_ANY_TABLE, color_system=None)
    console.print(table)
    lines = (line.rstrip() for line in console.file.getvalue().splitlines())
    return "\n".join([content["title"], *(line for line in lines if line)])


def _heading(column: Mapping[str, Any]) -> Text:
    """The column's name, in two lines where it has several words, and its note. Units but % are in the titles."""
    name = column["name"].replace(" ", "\n", 1) + (" %" if column["unit"] == "%" else "")
    return Text("\n".join([name, *([column["note"]] if column["note"] else [])]))


def _shown(cell: Cell) -> str:
    return ("*" if cell.best else "") + cell.text + (f" ({_MARKS[cell.tone]})" if cell.tone else "")


def _failed_checks(preflights: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Sequence[str]:
    return [
        textwrap.fill(f"PREFLIGHT of {row}, {name}: {check['failed']}", LINE, subsequent_indent="  ")
        for row, checks in preflights.items()
        for name, check in checks.items()
        if check["failed"] is not None
    ]
