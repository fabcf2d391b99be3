"""The sections about the text: what the tokenizations do to each part of it, the chunks, what is lost."""

from __future__ import annotations

from alignment.audit.report import AuditReport, LongSpan, TextSlice
from stages.auditing.formats import count, number, percent, quantity, quoted, size
from stages.auditing.section import Column, Row, Section

_BRIEF_SHARE = 0.005
"""Classes and scripts with less of the text than this are left to the page."""

_SLICE_COLUMNS = (
    Column("text", numeric=False),
    Column("share", meaning="of all bytes, weighted by the data's weights"),
    Column("covered", meaning="share of its bytes inside chunks"),
    Column("1:1", meaning="share of its bytes in chunks of one token on either side"),
    Column("teacher per byte", meaning="teacher tokens per byte of text"),
    Column("student per byte", meaning="student tokens per byte of text"),
    Column("length ratio", meaning="teacher tokens per student token"),
    Column("teacher common", meaning="share of its teacher tokens that are student tokens too"),
    Column("student common", meaning="share of its student tokens that are teacher tokens too"),
    Column("fused", meaning="share of its chunks that ALM's gamma rule joins to the next"),
    Column("in word", meaning="share of its chunks that start inside a word or number"),
)


def text_section(report: AuditReport) -> Section:
    """Coverage, lengths and chunks of all text and of each of its parts."""
    groups = (
        ("all text", (report.overall,)),
        ("domain", report.domains if len(report.domains) > 1 else ()),
        ("class", report.classes),
        ("script", report.scripts if len(report.scripts) > 1 else ()),
        ("kind", report.prose_and_code),
    )
    slices = tuple((item, _slice(item, kind)) for kind, items in groups for item in items)
    brief = tuple(row for item, row in slices if item.share is not None and item.share >= _BRIEF_SHARE)
    return Section("text", "What happens to the text", (), (), _SLICE_COLUMNS, tuple(row for _, row in slices), brief)


def _slice(item: TextSlice, kind: str) -> Row:
    name = kind if kind == "all text" else f"{kind}: {item.name}"
    return (
        name,
        percent(item.share),
        percent(item.coverage),
        percent(item.one_to_one),
        number(item.teacher_tokens_per_byte, 3),
        number(item.student_tokens_per_byte, 3),
        number(item.length_ratio, 2),
        percent(item.teacher_common),
        percent(item.student_common),
        percent(item.fused),
        percent(item.inside_word),
    )


def chunk_section(report: AuditReport) -> Section:
    """How fine the chunks are, and the longest ones."""
    chunks, boundaries = report.chunks, report.boundaries
    shapes = ", ".join(f"{percent(share)} {shape}" for shape, share in chunks.shapes.items())
    sentences = (
        f"{quantity(chunks.chunks)} chunks of {number(chunks.bytes_per_chunk, 1)} bytes; "
        f"{number(chunks.per_teacher_token, 2)} a teacher token, {number(chunks.per_student_token, 2)} a student "
        f"token; teacher:student tokens {shapes}.",
        f"ALM's gamma rule fuses {percent(boundaries.fused)} of them with the next, so that it compares "
        f"{number(boundaries.chunks_per_group, 2)} chunks at a time on average.",
    )
    columns = (
        Column("stretch", numeric=False),
        Column("domain", numeric=False),
        Column("document", meaning="number in its domain, from 0"),
        Column("byte", meaning="where it starts in the document"),
        Column("bytes"),
        Column("teacher tokens"),
        Column("student tokens"),
        Column("text", numeric=False),
    )
    rows = tuple(
        _long_span(kind, span)
        for kind, spans in (("chunk", chunks.longest), ("fused group", boundaries.longest_groups))
        for span in spans
    )
    return Section("chunks", "Chunks", sentences, (), columns, rows)


def _long_span(kind: str, span: LongSpan) -> Row:
    numbers = (span.document, span.start, span.bytes, span.teacher_tokens, span.student_tokens)
    return (kind, span.domain, *map(count, numbers), quoted(span.text))


def unusable_section(report: AuditReport) -> Section:
    """Bytes outside chunks, and documents that a tokenizer rewrites."""
    facts = report.rejections
    outside = f"{size(facts.bytes)} ({percent(facts.share, 2)}), in {count(facts.documents)} documents"
    sentences = [f"Outside every chunk: {outside}." if facts.documents else "Every byte is in a chunk."]
    for side, tokenizer, documents, lost in (
        ("teacher", report.teacher, facts.teacher_inexact_documents, facts.teacher_inexact_bytes),
        ("student", report.student, facts.student_inexact_documents, facts.student_inexact_bytes),
    ):
        if not tokenizer.exact:
            why = "; ".join(tokenizer.inexact_reasons)
            sentences.append(
                f"The {side} does not spell every text ({why}); of this text "
                + (f"that costs {size(lost)} in {documents:,} documents." if documents else "it spells all.")
            )
    columns = (
        Column("side", numeric=False),
        Column("domain", numeric=False),
        Column("document", meaning="number in its domain, from 0"),
        Column("byte", meaning="the first whose token does not spell the text"),
        Column("bytes"),
        Column("text", numeric=False),
    )
    rows = tuple(
        (item.side, item.domain, count(item.document), count(item.offset), count(item.bytes), quoted(item.text))
        for item in facts.examples
    )
    return Section("unusable", "Text that training cannot use", tuple(sentences), (), columns, rows)
