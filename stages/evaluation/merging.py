"""Several evaluations as one: the rows of all of them under each measure, so that runs can be compared.

Works on the content of ``report.json``, and gives the same form, which the page and the table show like any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from stages.evaluation.sections import SCHEMA_VERSION

Report = Mapping[str, Any]
Rename = Callable[[str], str]

_ROWS_OF = {"bars": "values", "curves": "lines"}
_BY_ROW = {"items": ("answers", "correct", "problems"), "samples": ("continuations",)}
_FOLLOW_THE_MODELS = ("scored bytes", "excerpts read", "excerpts scored")
"""Facts that depend a little on which models were measured together: scoring starts where tokens of all of them end."""
_APART = "NOT COMPARABLE from run to run"
_ITS_OWN_QUESTIONS = "questions_sha256"
"""The fact by which a section says what it asked; it reads no documents of the recipe."""


def merge(reports: Mapping[str, Report], title: str, documents: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One report of all, by run name.

    A row that is the same in every run that has it, such as the teacher or a shared initial model, keeps its name;
    every other row is called ``<run>/<row>``. Where runs measured in different ways, a section says so in a warning,
    and its tables are marked ``"comparable": false``: none of their rows is the best. A column that each run measures
    from rows of its own, as the gap closed since the initial model, is marked so alone.

    Args:
        reports: run -> the content of its ``report.json``.
        title: of the whole.
        documents: run -> what identifies the documents that it was evaluated on; None where nothing is known of them.

    Raises:
        ValueError: a report is of another version of the format than this.
    """
    for run, report in reports.items():
        if report.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{run}: its report is of format {report.get('schema_version')}, this is {SCHEMA_VERSION}; "
                "evaluate it again"
            )
    renamed = [_renamed(report, _naming(run, reports)) for run, report in reports.items()]
    names = dict.fromkeys(section["name"] for report in renamed for section in report["sections"])
    return {
        "schema_version": SCHEMA_VERSION,
        "title": title,
        "sections": [
            _merged_sections(
                {
                    run: section
                    for run, report in zip(reports, renamed, strict=True)
                    for section in report["sections"]
                    if section["name"] == name
                },
                documents or {},
            )
            for name in names
        ],
        "curves": _joined(report["curves"] for report in renamed),
        "settings": {run: report["settings"] for run, report in reports.items()},
        "preflight": _joined(report["preflight"] for report in renamed),
        "versions": {run: report["versions"] for run, report in reports.items()},
    }


def _naming(run: str, reports: Mapping[str, Report]) -> Rename:
    def name(row: str) -> str:
        seen = {_numbers(report, row) for report in reports.values() if row in report["preflight"]}
        # None have seen a role, such as the initial model, which differences are to: each run has its own.
        return row if len(seen) <= 1 else f"{run}/{row}"

    return name


def _numbers(report: Report, row: str) -> str:
    """Everything that the tables say of a row, to tell whether two rows are one."""
    found = {
        (section["name"], table["title"]): table["rows"].get(row)
        for section in report["sections"]
        for table in section["tables"]
    }
    return json.dumps(sorted((key, value) for key, value in found.items() if value is not None), sort_keys=True)


def _renamed(report: Report, name: Rename) -> dict[str, Any]:
    def keys(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name(row): value for row, value in values.items()}

    def section(content: Mapping[str, Any]) -> dict[str, Any]:
        tables = [
            table
            | {
                "columns": [
                    {**column, "measured_from": [name(row) for row in column.get("measured_from", ())]}
                    for column in table["columns"]
                ],
                "rows": keys(table["rows"]),
                "differences": {name(ref): keys(rows) for ref, rows in table["differences"].items()},
            }
            for table in content["tables"]
        ]
        figures = {kind: [f | {place: keys(f[place])} for f in content[kind]] for kind, place in _ROWS_OF.items()}
        asked = {
            kind: [entry | {place: keys(entry[place]) for place in places} for entry in content[kind]]
            for kind, places in _BY_ROW.items()
        }
        skipped = [entry | {"model": entry["model"] and name(entry["model"])} for entry in content["skipped"]]
        return {**content, "tables": tables, **figures, **asked, "skipped": skipped}

    return {
        **report,
        "sections": [section(content) for content in report["sections"]],
        "curves": keys(report["curves"]),
        "preflight": keys(report["preflight"]),
    }


def _merged_sections(by_run: Mapping[str, Mapping[str, Any]], documents: Mapping[str, str]) -> dict[str, Any]:
    """The section of one name of all runs that have it."""
    sections = list(by_run.values())
    facts = {run: section["facts"] for run, section in by_run.items()}
    differing, comparable = _measured_differently(facts, documents)
    tables = [_merged_tables(of_title) for of_title in _grouped(sections, "tables", ("title",))]
    differing += _columns_apart(tables)
    merged: dict[str, Any] = {
        **sections[0],
        "tables": [
            table if comparable else table | {"title": f"{table['title']} ({_APART})", "comparable": False}
            for table in tables
        ],
        "skipped": list({json.dumps(entry): entry for s in sections for entry in s["skipped"]}.values()),
        "warnings": list(dict.fromkeys([*differing, *(line for section in sections for line in section["warnings"])])),
        "facts": sections[0]["facts"] if all(found == sections[0]["facts"] for found in facts.values()) else facts,
        "metrics": {},
        "data": {},
    }
    for kind, place in _ROWS_OF.items():
        merged[kind] = [
            group[0] | {place: _joined(entry[place] for entry in group)}
            for group in _grouped(sections, kind, ("title",))
        ]
    for kind, places in _BY_ROW.items():
        same = ("id", "prompt", "gold") if kind == "items" else ("prompt", "gold")
        merged[kind] = [
            group[0] | {place: _joined(entry[place] for entry in group) for place in places}
            for group in _grouped(sections, kind, same)
        ]
    return merged


def _measured_differently(
    facts: Mapping[str, Mapping[str, Any]], documents: Mapping[str, str]
) -> tuple[list[str], bool]:
    """What of one section differs from run to run, in words, and whether its numbers can be compared all the same.

    A fact that is a mapping is about single rows, except ``settings``.
    """
    names = dict.fromkeys(name for found in facts.values() for name in found)
    told = [name for name in names if not name.endswith("_sha256")]
    values = {
        name: {run: found.get(name) for run, found in facts.items()}
        for name in told
        if name == "settings" or not any(isinstance(found.get(name), Mapping) for found in facts.values())
    }
    differing = {name: given for name, given in values.items() if len({_text(value) for value in given.values()}) > 1}
    lines = [
        f"the runs differ in {name}: {', '.join(f'{run} {_text(value)}' for run, value in given.items())}"
        for name, given in differing.items()
    ]
    others = {documents.get(run) for run in facts}
    if _ITS_OWN_QUESTIONS in names:
        others = {found.get(_ITS_OWN_QUESTIONS) for found in facts.values()}
    if len(others) > 1:
        lines.append(f"the runs were asked different {'questions' if _ITS_OWN_QUESTIONS in names else 'documents'}")
    comparable = len(others) <= 1 and differing.keys() <= set(_FOLLOW_THE_MODELS)
    if not comparable:
        lines = [f"{_APART}, so none is marked as the best: {line}" for line in lines]
    return lines, comparable


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _merged_tables(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    references = dict.fromkeys(reference for table in tables for reference in table["differences"])
    return {
        **tables[0],
        "columns": [_merged_columns(columns) for columns in _grouped(tables, "columns", ("name",))],
        "rows": _joined(table["rows"] for table in tables),
        "differences": {
            reference: _joined(table["differences"].get(reference, {}) for table in tables) for reference in references
        },
    }


def _merged_columns(columns: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The columns of one name of all runs."""
    measured_from = [column["measured_from"] for column in columns]
    if all(rows == measured_from[0] for rows in measured_from):
        return columns[-1]
    rows = list(dict.fromkeys(row for of_run in measured_from for row in of_run))
    return {**columns[-1], "note": "NOT COMPARABLE", "comparable": False, "measured_from": rows}


def _columns_apart(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{column['name']} is {_APART}, so none of it is marked as the best: it is measured from rows that differ, "
        f"{', '.join(column['measured_from'])}"
        for table in tables
        for column in table["columns"]
        if not column.get("comparable", True)
    ]


def _grouped(sections: Sequence[Mapping[str, Any]], kind: str, same: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    """The entries of one kind of all sections, those with the same values under ``same`` together."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for section in sections:
        for entry in section[kind]:
            groups.setdefault(tuple(entry[key] for key in same), []).append(entry)
    return list(groups.values())


def _joined(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for mapping in mappings:
        joined |= mapping
    return joined
