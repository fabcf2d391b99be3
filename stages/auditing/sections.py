"""The audit's findings as sections of sentences and tables, what a user decides from first; text and page show both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment.audit.report import AuditReport, Finding, TokenizerFacts
from stages.auditing.cost_section import cost_section
from stages.auditing.formats import size
from stages.auditing.section import Column, Section
from stages.auditing.text_sections import chunk_section, text_section, unusable_section
from stages.auditing.vocabulary_sections import (
    chat_section,
    initialisation_section,
    suppression_section,
    vocabulary_section,
)


@dataclass(frozen=True)
class AuditResult:
    """Everything that the stage found.

    Attributes:
        report: what the two tokenizers do to the text.
        initialisation: ``alignment.vocab.describe`` of the student's own vocabulary and the target.
        chat: ``alignment.chat``'s report of the two templates.
    """

    report: AuditReport
    initialisation: Mapping[str, Any]
    chat: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The content of ``report.json``."""
        return {
            **self.report.to_json(),
            "initialisation": dict(self.initialisation),
            "chat_templates": dict(self.chat),
        }


def sections(result: AuditResult) -> tuple[Section, ...]:
    """All sections, in the order in which they are read."""
    report = result.report
    return (
        _verdict(report),
        text_section(report),
        chunk_section(report),
        vocabulary_section(report),
        suppression_section(report),
        unusable_section(report),
        initialisation_section(result.initialisation),
        chat_section(result.chat),
        cost_section(report),
    )


def headline(report: AuditReport) -> str:
    """What was audited, in a line."""
    return (
        f"{_tokenizer(report.teacher)} → {_tokenizer(report.student)}, on {report.documents:,} "
        f"document{'' if report.documents == 1 else 's'}, "
        f"{size(report.text_bytes)}"
    )


def _tokenizer(facts: TokenizerFacts) -> str:
    return f"{facts.name} ({facts.vocab_size:,} tokens)"


_MARKS = {"warning": "WARNING", "note": "note", "ok": "ok"}


def _verdict(report: AuditReport) -> Section:
    advice = report.recommendation
    columns = (
        Column("objective", numeric=False),
        Column("verdict", numeric=False),
        Column("because", numeric=False),
        Column("source", numeric=False, brief=False),
    )
    rows = tuple((item.objective, item.verdict, item.reason, item.source) for item in advice.objectives)
    return Section(
        "verdict",
        f"Recommended objective: {advice.objective}",
        tuple(_finding(finding) for finding in advice.findings if finding.level != "ok"),
        tuple(_finding(finding) for finding in advice.findings if finding.level == "ok"),
        columns,
        rows,
        rows,
    )


def _finding(finding: Finding) -> str:
    return f"{_MARKS[finding.level]}: {finding.topic}: {finding.message}"
