"""The evaluation as text."""

from __future__ import annotations

from typing import Any

from stages.evaluation.sections import Column, Measure, SectionReport, Skipped, Table
from stages.evaluation.table import MOST_SKIPPED, render


def report(*skipped: Skipped, failed: str | None = None, warnings: tuple[str, ...] = ()) -> dict[str, Any]:
    news, code = Column("news", better="lower", note="trained"), Column("code", better="lower", note="untrained")
    table = Table(
        "Bits per byte",
        (news, code, Column("exact match", "%", "higher", digits=1)),
        {
            "teacher": {"news": Measure(0.5), "code": Measure(0.6)},
            "init": {"news": Measure(0.9), "code": Measure(0.8, 0.7, 0.9), "exact match": Measure(12.34)},
            "distill": {"news": Measure(0.7), "code": Measure(0.85), "exact match": Measure(50.0)},
        },
        {
            "initial": {
                "distill": {
                    "news": Measure(-0.2, -0.3, -0.1),
                    "code": Measure(0.05, 0.01, 0.09),
                    "exact match": Measure(37.66, -1.0, 80.0),
                }
            }
        },
    )
    section = SectionReport("retention", "Retention", "What it means.", (table,), skipped=skipped, warnings=warnings)
    checks = {"text start": {"found": {}, "falsifies": [], "failed": failed}}
    return {"sections": [section.to_json()], "preflight": {"init": checks}}


def test_models_down_measures_across_with_marks() -> None:
    lines = render(report()).splitlines()
    start = lines.index("Bits per byte")
    assert [line.split() for line in lines[start + 1 : start + 7]] == [
        ["news", "code", "exact"],
        ["model", "trained", "untrained", "match", "%"],
        ["─" * len(lines[start + 3].strip())],
        ["teacher", "0.500", "0.600", "-"],
        ["init", "0.900", "*0.800", "12.3"],
        ["distill", "*0.700", "0.850", "*50.0"],
    ]
    (difference,) = [line for line in lines if line.strip().startswith("vs initial")]
    # Better, worse, and an interval that holds zero.
    assert difference.split() == ["vs", "initial", "-0.200", "(+)", "+0.050", "(-)", "+37.7"]
    assert "Retention. What it means." in lines


def test_few_documents_are_said_below_the_table() -> None:
    content = report()
    table = content["sections"][0]["tables"][0]
    assert "no interval" not in render(content)
    for measures in (table["rows"]["init"], table["differences"]["initial"]["distill"]):
        measures["news"] = {"value": 1.0, "low": None, "high": None, "too_few": 1}
        measures["code"] = {"value": 1.0, "low": None, "high": None, "too_few": 3}
    table["rows"]["distill"]["code"]["too_few"] = 2
    lines = render(content).splitlines()
    note = (
        " Of fewer than 6 documents or items there is no interval, and no difference is marked: "
        "news (1); code (2 or 3)."
    )
    assert note in lines
    assert lines.index(note) < lines.index("Retention. What it means.")
    (difference,) = [line for line in lines if line.strip().startswith("vs initial")]
    assert difference.split()[2:5] == ["+1.000", "+1.000", "+37.7"], "unmarked"


def test_what_was_skipped_and_what_failed_is_said() -> None:
    skipped = [Skipped(f"document d/{number}", "it is too short") for number in range(MOST_SKIPPED + 3)]
    text = render(
        report(
            Skipped("retention", "the tokenizer changes it", "init"),
            *skipped,
            failed="the same token twice",
            warnings=("this looks misaligned",),
        )
    )
    assert "skipped: retention of init: the tokenizer changes it" in text
    assert "skipped: document d/0: it is too short" in text
    assert f"skipped: document d/{MOST_SKIPPED}" not in text
    assert "skipped: 4 more; report.json lists them" in text
    assert "WARNING: this looks misaligned" in text
    assert "PREFLIGHT of init, text start: the same token twice" in text


def test_text_wraps_and_names_with_markup_stay_as_they_are() -> None:
    long = report(Skipped("x", "word " * 60), warnings=("a [bold]warning[/bold]",))
    long["sections"][0]["tables"][0]["rows"]["[red]init"] = {"news": {"value": 1.0, "low": None, "high": None}}
    text = render(long)
    assert max(map(len, text.splitlines())) <= 119
    assert "[red]init" in text
    assert "[bold]warning[/bold]" in text
