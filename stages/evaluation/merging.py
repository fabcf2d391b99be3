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


def merge(reports: Mapping[str, Report], title: str) -> dict[str, Any]:
    """One report of all, by run name.

    A row that is the same in every run that has it, such as the teacher or a shared initial model, keeps its name;
    every other row is called ``<run>/<row>``.

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
            _merged_sections([s for report in renamed for s in report["sections"] if s["name"] == name], list(reports))
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


def _merged_sections(sections: Sequence[Mapping[str, Any]], runs: Sequence[str]) -> dict[str, Any]:
    first = sections[0]
    facts = [section["facts"] for section in sections]
    merged: dict[str, Any] = {
        **first,
        "tables": [_merged_tables(tables) for tables in _grouped(sections, "tables", ("title",))],
        "skipped": list({json.dumps(entry): entry for s in sections for entry in s["skipped"]}.values()),
        "warnings": list(dict.fromkeys(line for section in sections for line in section["warnings"])),
        "facts": facts[0] if all(fact == facts[0] for fact in facts) else dict(zip(runs, facts, strict=False)),
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


def _merged_tables(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    references = dict.fromkeys(reference for table in tables for reference in table["differences"])
    return {
        **tables[0],
        "columns": list({column["name"]: column for table in tables for column in table["columns"]}.values()),
        "rows": _joined(table["rows"] for table in tables),
        "differences": {
            reference: _joined(table["differences"].get(reference, {}) for table in tables) for reference in references
        },
    }


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
