"""The ``audit`` stage: what the teacher's and the target tokenizer do to the training text, before any training."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import Field

from stages.artifacts import (
    AuditArtifact,
    DocumentsArtifact,
    ModelConfigArtifact,
    TokenizerArtifact,
    read_json,
    write_json,
)
from stages.stage import Input, StageConfig, StageContext, StageInterrupted

if TYPE_CHECKING:
    from alignment.audit.cost import Workload
    from alignment.audit.report import AuditReport

BATCH_BYTES = 1 << 20
"""Text handed to the audit at once: enough to be fast, little enough to hold and to be interrupted between."""

SECONDS_BETWEEN_PROGRESS = 5.0


class AuditConfig(StageConfig):
    """All of the training text is read; the options only describe the training whose cost is estimated."""

    window_tokens: int = Field(256, ge=1)
    """Longest window of text in tokens, as in a training stage."""
    batch_windows: int = Field(8, ge=1)
    """Windows of text a step, as in a training stage."""


class Batch(NamedTuple):
    """Texts of one domain, and how often the domain is drawn."""

    domain: str
    weight: float
    texts: list[str]
    bytes: int
    conversations: int


class AuditStage:
    """Two tokenizers and a text -> ``report.json``, ``table.txt`` and ``report.html``. No weights are read."""

    VERSION: ClassVar[int] = 1
    Config: ClassVar[type[StageConfig]] = AuditConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "teacher": Input(ModelConfigArtifact, source="teacher_config"),
        "student": Input(ModelConfigArtifact, source="student_config"),
        "tokenizer": Input(TokenizerArtifact, source="tokenizer", replaceable=True),
        "documents": Input(DocumentsArtifact, source="train"),
    }
    output = AuditArtifact

    def run(self, ctx: StageContext) -> None:
        """Write the report as JSON, as text and as a page, and its main numbers as metrics.

        Raises:
            StageError: the bytes of a tokenizer cannot be derived, or there is no text.
            StageInterrupted: asked to stop.
        """
        from alignment.audit.preflight import Audit
        from alignment.chat.report import describe_chat_pair
        from stages.auditing import page, table
        from stages.auditing.sections import AuditResult
        from stages.auditing.tokenizers import initialisation_report, load_side

        teacher = load_side(ctx.input("teacher"), "teacher")
        student = load_side(ctx.input("tokenizer"), "student")
        audit = Audit(teacher.view, student.view)
        conversations = 0
        for batch in _batches(ctx):
            audit.add(batch.domain, batch.weight, batch.texts)
            conversations += batch.conversations
        ctx.progress("writing the report")
        report = audit.report(_workload(ctx, student.view.vocab_size))
        chat = describe_chat_pair(teacher.tokenizer, student.tokenizer)
        if conversations and not chat["usable"]:
            report = _with_chat_warning(report, conversations)
        result = AuditResult(
            report=report,
            initialisation=initialisation_report(load_side(ctx.input("student"), "student's own"), student),
            chat=chat,
        )
        write_json(ctx.out / "report.json", result.to_json())
        write_json(ctx.out / "metrics.json", _metrics(result.report))
        (ctx.out / "table.txt").write_text(table.render(result), encoding="utf-8")
        (ctx.out / "report.html").write_text(page.render(result), encoding="utf-8")


def _workload(ctx: StageContext, target_size: int) -> Workload:
    """The training that the cost is estimated for: the student's body with the target's vocabulary."""
    from alignment.audit.cost import ModelShape, Workload
    from losses.scores import ACCELERATOR_TILE_BYTES

    student = ModelShape.from_config(read_json(ctx.input("student") / "config.json"))
    return Workload(
        teacher=ModelShape.from_config(read_json(ctx.input("teacher") / "config.json")),
        student=None if student is None else replace(student, vocabulary_rows=target_size),
        window_tokens=ctx.config.window_tokens,
        batch_windows=ctx.config.batch_windows,
        head_block_bytes=ACCELERATOR_TILE_BYTES,
    )


def _batches(ctx: StageContext) -> Iterator[Batch]:
    """The training text in batches of one domain each, with progress after each.

    Raises:
        StageInterrupted: asked to stop.
    """
    directory = ctx.input("documents")
    total = read_json(directory / "manifest.json")["bytes"]
    done, shown = 0, time.monotonic()
    for batch in _read_batches(directory / "documents.jsonl"):
        if ctx.should_stop():
            raise StageInterrupted(f"stopped after {done:,} of {total:,} bytes; it starts anew")
        yield batch
        done += batch.bytes
        if time.monotonic() - shown >= SECONDS_BETWEEN_PROGRESS:
            shown = time.monotonic()
            ctx.progress(f"{done / total:.0%} of {total:,} bytes")


def _read_batches(path: Path) -> Iterator[Batch]:
    with path.open(encoding="utf-8") as file:
        documents = map(json.loads, file)
        for (domain, weight), group in groupby(
            documents, key=lambda document: (document["domain"], document["weight"])
        ):
            texts, size, conversations = [], 0, 0
            for document in group:
                texts.append(_text(document))
                size += len(texts[-1].encode())
                conversations += "messages" in document
                if size >= BATCH_BYTES:
                    yield Batch(domain, weight, texts, size, conversations)
                    texts, size, conversations = [], 0, 0
            if texts:
                yield Batch(domain, weight, texts, size, conversations)


def _text(document: Mapping[str, Any]) -> str:
    """A document's text; of a conversation the contents of its messages, a line break between them."""
    if "messages" in document:
        return "\n".join(message.get("content") or "" for message in document["messages"])
    return document["text"]


def _with_chat_warning(report: AuditReport, conversations: int) -> AuditReport:
    from alignment.audit.report import Finding

    message = (
        f"The data holds conversations ({conversations:,}), which distill would refuse, since a tokenizer cannot "
        "render them: see the chat templates below."
    )
    findings = (Finding("warning", "chat templates", message, "our judgement"), *report.recommendation.findings)
    return replace(report, recommendation=replace(report.recommendation, findings=findings))


def _metrics(report: AuditReport) -> dict[str, float]:
    values = {
        "coverage": report.overall.coverage,
        "length_ratio": report.overall.length_ratio,
        "one_to_one": report.overall.one_to_one,
        "fused": report.boundaries.fused,
        "teacher_common_by_text": report.vocabulary.teacher_by_text,
        "student_common_by_text": report.vocabulary.student_by_text,
        "suppressed_by_text": report.suppression.frequency,
        "inexact_documents": report.rejections.teacher_inexact_documents + report.rejections.student_inexact_documents,
        "digit_schemes_clash": float(report.digits.verdict == "clash"),
    }
    return {name: float(value) for name, value in values.items() if value is not None}
