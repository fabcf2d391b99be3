"""The section about what training on the audited text costs."""

from __future__ import annotations

from alignment.audit.report import AuditReport, ModelCost
from stages.auditing.formats import count, scaled, size
from stages.auditing.section import Column, Row, Section


def cost_section(report: AuditReport) -> Section:
    """How much text a context holds on either side, and what one epoch takes."""
    title = "Context and cost"
    contexts = tuple(
        f"{count(context.tokens)} tokens of context hold {size(context.teacher_bytes)} of this text for the teacher, "
        f"{size(context.student_bytes)} for the student."
        for context in report.contexts
    )
    cost = report.cost
    if cost is None:
        return Section(
            "cost", title, (contexts[-1], "No cost estimate: the models' sizes are not known."), contexts[:-1]
        )
    sentences = (
        contexts[-1],
        f"One epoch: {_flops(cost.flops)}; caching the teacher's scores takes {size(cost.score_cache_bytes)}.",
    )
    details = (*contexts[:-1], cost.assumptions)
    columns = (
        Column("model", numeric=False),
        Column("parameters"),
        Column("weights and training state"),
        Column("tokens an epoch"),
        Column("FLOP a byte"),
        Column("logits [B, T, V]"),
        Column("fused head", meaning="the largest block of logits that the fused head holds at a time"),
    )
    models = (("teacher", cost.teacher), ("student", cost.student))
    rows = tuple(_model_cost(name, model) for name, model in models if model is not None)
    return Section("cost", title, sentences, details, columns, rows, rows)


def _model_cost(name: str, cost: ModelCost) -> Row:
    return (
        name,
        scaled(cost.parameters).strip(),
        size(cost.state_bytes),
        scaled(cost.tokens).strip(),
        scaled(cost.flops_per_byte).strip(),
        size(cost.logits_bytes),
        size(cost.fused_head_bytes),
    )


def _flops(value: float | None) -> str:
    return "compute not estimated" if value is None else f"{scaled(value)}FLOP"
