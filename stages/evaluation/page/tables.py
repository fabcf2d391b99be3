"""The tables of ``report.json`` as rows of cells: each section's with models down, the summary with models across."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stages.evaluation.numbers import best_rows, interval, is_number, shown
from stages.evaluation.sections import FEWEST, TEACHER

Tone = Literal["", "better", "worse", "other"]
"""Of a difference whose interval leaves out zero; ``other`` where neither end of the measure is good."""


@dataclass(frozen=True)
class Cell:
    """One number as it is shown, its interval, and what is to be said of it."""

    text: str
    interval: str = ""
    best: bool = False
    tone: Tone = ""


@dataclass(frozen=True)
class Row:
    """One line of a table; a line of differences follows the line of what it compares, and names its reference."""

    label: str
    cells: tuple[Cell, ...]
    reference: str | None = None
    column: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Group:
    """The key measures of one section, and the note below them, if any."""

    name: str
    title: str
    rows: tuple[Row, ...]
    note: str


def models_of(report: Mapping[str, Any]) -> list[str]:
    """Every row name of the report: the teacher, the recipe's models (also one that every section skipped), then what
    sections add, such as ensembles."""
    names: dict[str, None] = dict.fromkeys(report["preflight"])
    for section in report["sections"]:
        for table in section["tables"]:
            names |= dict.fromkeys(table["rows"])
        for bars in section["bars"]:
            names |= dict.fromkeys(bars["values"])
        for curve in section["curves"]:
            names |= dict.fromkeys(curve["lines"])
        for item in section["items"]:
            names |= dict.fromkeys([*item["answers"], *item["correct"], *item["problems"]])
        for sample in section["samples"]:
            names |= dict.fromkeys(sample["continuations"])
    return sorted(names, key=lambda name: not _is_teacher(name))


def section_rows(table: Mapping[str, Any]) -> Iterator[Row]:
    """The lines of a section's table: a model, then its differences to each reference."""
    columns = table["columns"]
    best = [_best(table, column) for column in columns]
    for model, measures in table["rows"].items():
        cells = (
            _cell(measures.get(column["name"]), column, best=model in winners)
            for column, winners in zip(columns, best, strict=True)
        )
        yield Row(model, tuple(cells))
        for reference, rows in table["differences"].items():
            if model in rows:
                yield Row(
                    model, tuple(_difference(rows[model].get(column["name"]), column) for column in columns), reference
                )


def differences_in_summary(table: Mapping[str, Any]) -> bool:
    """Whether the summary has all differences of a section's first table: it leaves out what has no good end."""
    compared = {name for rows in table["differences"].values() for measures in rows.values() for name in measures}
    return compared <= {column["name"] for column in table["columns"] if column["better"] is not None}


def summary(sections: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[Group]:
    """The first table of every section, with a line for each measure and a cell for each of ``models``.

    Measures of which neither end is good are facts about a section, and are left to its own table.
    """
    groups = [
        Group(
            section["name"],
            section["title"],
            tuple(_measure_rows(section["tables"][0], models)),
            without_interval(section["tables"][0]),
        )
        for section in sections
        if section["tables"]
    ]
    return [group for group in groups if group.rows]


def without_interval(table: Mapping[str, Any]) -> str:
    """Which columns have no interval because they are of too few documents or items, and of how many; else nothing."""
    counts: dict[str, set[int]] = {}
    for rows in (table["rows"], *table["differences"].values()):
        for measures in rows.values():
            for column, measure in measures.items():
                if (count := measure.get("too_few")) is not None:
                    counts.setdefault(column, set()).add(count)
    if not counts:
        return ""
    by_count: dict[str, list[str]] = {}
    for column, found in counts.items():
        by_count.setdefault(" or ".join(map(str, sorted(found))), []).append(column)
    of = "; ".join(f"{', '.join(columns)} ({count})" for count, columns in by_count.items())
    return f"Of fewer than {FEWEST} documents or items there is no interval, and no difference is marked: {of}."


def _measure_rows(table: Mapping[str, Any], models: Sequence[str]) -> Iterator[Row]:
    for column in table["columns"]:
        if column["better"] is None:
            continue
        name, best = column["name"], _best(table, column)
        cells = (_cell(table["rows"].get(model, {}).get(name), column, best=model in best) for model in models)
        yield Row(name, tuple(cells), column=column)
        for reference, rows in table["differences"].items():
            measures = [rows.get(model, {}).get(name) for model in models]
            if any(measures):
                yield Row(name, tuple(_difference(measure, column) for measure in measures), reference)


def _is_teacher(row: str) -> bool:
    """Whether it is the teacher's row, or that of one of several teachers in a comparison of runs."""
    return row.rpartition("/")[2] == TEACHER


def _best(table: Mapping[str, Any], column: Mapping[str, Any]) -> frozenset[str]:
    if not (table.get("comparable", True) and column.get("comparable", True)):
        return frozenset()
    values = {
        model: measures[column["name"]]["value"]
        for model, measures in table["rows"].items()
        if not _is_teacher(model) and column["name"] in measures
    }
    return best_rows(values, column["better"], column["digits"])


def _cell(measure: Mapping[str, Any] | None, column: Mapping[str, Any], *, best: bool) -> Cell:
    if measure is None:
        return Cell(shown(None, 0))
    return Cell(shown(measure["value"], column["digits"]), interval(measure, column["digits"]), best)


def _difference(measure: Mapping[str, Any] | None, column: Mapping[str, Any]) -> Cell:
    if measure is None:
        return Cell(shown(None, 0))
    digits = column["digits"]
    return Cell(
        shown(measure["value"], digits, sign=True),
        interval(measure, digits, sign=True),
        tone=_tone(measure, column["better"]),
    )


def _tone(measure: Mapping[str, Any], better: str | None) -> Tone:
    low, high = measure["low"], measure["high"]
    if not (is_number(low) and is_number(high)) or low <= 0 <= high:
        return ""
    if better is None:
        return "other"
    return "better" if (low > 0) == (better == "higher") else "worse"
