from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from stages.evaluation import page
from stages.evaluation.merging import merge
from stages.evaluation.sections import Bars, Column, Item, Measure, Sample, SectionReport, Skipped, Table
from stages.evaluation.table import render


def report(student: float, *, teacher: float = 0.5, columns: tuple[str, ...] = ("prose",)) -> dict[str, Any]:
    """One evaluation of a teacher and a student, with something of every kind."""
    rows = {
        "teacher": {name: Measure(teacher) for name in columns},
        "student": {name: Measure(student, student - 0.1, student + 0.1) for name in columns},
    }
    section = SectionReport(
        name="retention",
        title="Retention",
        about="Bits per byte.",
        tables=(
            Table(
                "bits per byte",
                tuple(Column(name, "bits", "lower") for name in columns),
                rows,
                {"teacher": {"student": {name: Measure(student - teacher) for name in columns}}},
            ),
        ),
        bars=(Bars("by domain", "bits", {"student": {"prose": Measure(student)}}),),
        items=(Item("q1", {"task": "spell"}, "spell", "a b", {"student": str(student)}, {"student": student < 1}),),
        samples=(Sample("Once", {"student": f"upon {student}"}),),
        skipped=(Skipped("exact_bytes", "no merges", "student"),),
        warnings=("few documents",),
        facts={"documents": 3},
    )
    return {
        "schema_version": 2,
        "title": "Evaluation",
        "sections": [asdict(section)],
        "curves": {
            "student": {"steps": 2, "points": 2, "not_finite": 0, "measures": {"loss": [[1, 2.0], [2, student]]}}
        },
        "settings": {"window_bytes": 100},
        "preflight": {"teacher": {}, "student": {}},
        "versions": {"torch": "2"},
    }


def test_rows_that_differ_are_named_after_their_runs_and_shared_ones_stand_once() -> None:
    merged = merge({"long": report(0.9), "short": report(1.2)}, "both")
    (section,) = merged["sections"]
    (table,) = section["tables"]
    assert list(table["rows"]) == ["teacher", "long/student", "short/student"]
    assert table["rows"]["short/student"]["prose"] == {
        "value": 1.2,
        "low": pytest.approx(1.1),
        "high": pytest.approx(1.3),
        "too_few": None,
    }
    assert table["differences"]["teacher"]["long/student"]["prose"]["value"] == pytest.approx(0.4)
    assert list(merged["curves"]) == ["long/student", "short/student"]
    assert section["bars"][0]["values"].keys() == {"long/student", "short/student"}
    assert section["items"][0]["correct"] == {"long/student": True, "short/student": False}
    assert section["samples"][0]["continuations"]["short/student"] == "upon 1.2"
    assert [entry["model"] for entry in section["skipped"]] == ["long/student", "short/student"]
    assert section["warnings"] == ["few documents"]
    assert section["facts"] == {"documents": 3}


def test_a_reference_that_differs_is_named_after_its_run_too() -> None:
    merged = merge({"a": report(0.9, teacher=0.5), "b": report(0.9, teacher=0.4)}, "both")
    differences = merged["sections"][0]["tables"][0]["differences"]
    assert list(differences) == ["a/teacher", "b/teacher"]
    assert list(differences["b/teacher"]) == ["student"], "the student's own numbers are the same in both"


def test_a_role_keeps_its_name() -> None:
    reports = {"a": report(0.9), "b": report(1.2)}
    for content in reports.values():
        differences = content["sections"][0]["tables"][0]["differences"]
        differences["initial"] = differences["teacher"]
    (section,) = merge(reports, "both")["sections"]
    assert list(section["tables"][0]["differences"]["initial"]) == ["a/student", "b/student"]


def test_columns_and_sections_that_one_run_lacks_are_kept() -> None:
    with_more = report(0.9, columns=("prose", "code"))
    with_more["sections"].append(with_more["sections"][0] | {"name": "extra"})
    merged = merge({"a": report(1.0), "b": with_more}, "both")
    assert [section["name"] for section in merged["sections"]] == ["retention", "extra"]
    assert [column["name"] for column in merged["sections"][0]["tables"][0]["columns"]] == ["prose", "code"]


def test_what_was_measured_differently_is_said_and_none_of_it_is_the_best() -> None:
    few, many = report(0.9), report(1.2)
    many["sections"][0]["facts"] = {"documents": 5}
    merged = merge({"few": few, "many": many}, "both")
    (section,) = merged["sections"]
    assert section["warnings"][0].endswith("the runs differ in documents: few 3, many 5")
    assert "NOT COMPARABLE" in section["warnings"][0]
    assert section["tables"][0]["title"] == "bits per byte (NOT COMPARABLE from run to run)"
    assert section["facts"] == {"few": {"documents": 3}, "many": {"documents": 5}}
    assert "*0.900" in render(merge({"few": few, "many": report(1.2)}, "both"))
    assert "*0.900" not in render(merged)
    assert "0.900" in render(merged)


def test_other_documents_of_the_same_number_are_noticed() -> None:
    reports = {"a": report(0.9), "b": report(1.2)}
    (same,) = merge(reports, "both", {"a": "key", "b": "key"})["sections"]
    (other,) = merge(reports, "both", {"a": "key", "b": "yek"})["sections"]
    assert same["warnings"] == ["few documents"]
    assert other["warnings"][0].endswith("the runs were asked different documents")
    for content in reports.values():
        content["sections"][0]["facts"] = {"questions_sha256": "the same questions"}
    (suite,) = merge(reports, "both", {"a": "key", "b": "yek"})["sections"]
    assert suite["warnings"] == ["few documents"], "it reads no documents"
    reports["b"]["sections"][0]["facts"] = {"questions_sha256": "others"}
    (suite,) = merge(reports, "both")["sections"]
    assert suite["warnings"][0].endswith("the runs were asked different questions")


def test_what_follows_from_the_models_is_said_but_can_be_compared() -> None:
    reports = {"a": report(0.9), "b": report(1.2)}
    for size, content in enumerate(reports.values()):
        content["sections"][0]["facts"] = {"scored bytes": 6855 + size, "places": {"student": size}}
    merged = merge(reports, "both")
    assert merged["sections"][0]["warnings"][0] == "the runs differ in scored bytes: a 6855, b 6856"
    assert "*0.900" in render(merged)


def with_gap_closed(student: float, *, initial: float) -> dict[str, Any]:
    """The report of a recipe that names an initial model: half of its way to the teacher is closed."""
    content = report(student)
    table = content["sections"][0]["tables"][0]
    table["columns"] = (*table["columns"], asdict(Column("gap closed", "%", "higher", 0, "", ("init", "teacher"))))
    shares = {"teacher": 100.0, "init": 0.0, "student": 100 * (initial - student) / (initial - 0.5)}
    table["rows"]["init"] = {"prose": asdict(Measure(initial))}
    for row, share in shares.items():
        table["rows"][row] = table["rows"][row] | {"gap closed": asdict(Measure(share))}
    content["preflight"]["init"] = {}
    return content


def test_gaps_from_one_initial_model_have_a_best_and_gaps_from_two_have_none() -> None:
    one = merge({"a": with_gap_closed(0.7, initial=0.9), "b": with_gap_closed(0.8, initial=0.9)}, "one")
    assert ["a/student", "*0.700", "*50"] in [line.split() for line in render(one).splitlines()]
    assert one["sections"][0]["warnings"] == ["few documents"]

    # b goes further, but only because it came from further away.
    two = merge({"a": with_gap_closed(0.7, initial=0.9), "b": with_gap_closed(0.8, initial=1.7)}, "two")
    lines = [line.split() for line in render(two).splitlines()]
    assert ["a/student", "*0.700", "50"] in lines, "bits per byte still have a best"
    assert ["b/student", "0.800", "75"] in lines
    (section,) = two["sections"]
    assert section["warnings"][0] == (
        "gap closed is NOT COMPARABLE from run to run, so none of it is marked as the best: it is measured from rows "
        "that differ, a/init, teacher, b/init"
    )
    assert page.render(two).count("★") == page.render(one).count("★") - 2, "in the summary and in the table"


def test_facts_stay_with_the_runs_that_have_the_section() -> None:
    reports = {"without": report(0.9), "b": report(1.0), "c": report(1.2)}
    for run, documents in (("b", 4), ("c", 5)):
        extra = reports[run]["sections"][0] | {"name": "extra", "facts": {"documents": documents}}
        reports[run]["sections"].append(extra)
    sections = merge(reports, "all")["sections"]
    assert sections[1]["facts"] == {"b": {"documents": 4}, "c": {"documents": 5}}


def test_several_teachers_stand_first_and_none_is_the_best() -> None:
    merged = merge({"a": report(0.9, teacher=0.5), "b": report(1.2, teacher=0.4)}, "both")
    rows = [line.split() for line in render(merged).splitlines()]
    assert ["a/student", "*0.900"] in rows
    assert ["b/teacher", "0.400"] in rows


def test_a_merged_report_is_shown_like_any_other() -> None:
    merged = merge({"long": report(0.9), "short": report(1.2)}, "both")
    assert "long/student" in render(merged)
    assert "short/student" in page.render(merged)


def test_a_report_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="old: its report is of format 1, this is 2; evaluate it again"):
        merge({"new": report(1.0), "old": report(1.0) | {"schema_version": 1}}, "both")
