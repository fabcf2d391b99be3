"""The sections about the two vocabularies: shared tokens, suppressed ones, new rows, chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.audit.report import AuditReport
from stages.auditing.formats import NOTHING, count, number, percent, quantity, quoted
from stages.auditing.section import Column, Section

_REASONING = {"all": "all turns", "last": "the last turn", "none": "no turn"}
_CHAT_FLAGS = ("trims_content", "drops_earlier_think_blocks", "supports_tools", "supports_tool_calls")


def vocabulary_section(report: AuditReport) -> Section:
    """What the vocabularies share, by entry and by text, and the tokens in the text that they do not."""
    facts = report.vocabulary
    sentences = (
        f"{count(facts.common)} byte strings are a token of both: {percent(facts.share_of_teacher)} of the teacher's, "
        f"{percent(facts.share_of_student)} of the student's; by occurrence in the text "
        f"{percent(facts.teacher_by_text)} and {percent(facts.student_by_text)}.",
    )
    details = (f"Numbers: {report.digits.sentence}",)
    columns = (
        Column("side", numeric=False),
        Column("token", numeric=False),
        Column("id"),
        Column("what it is", numeric=False),
        Column("occurrences"),
        Column("share", meaning="of all tokens of its side in the text"),
    )
    rows = tuple(
        (side, quoted(token.text), str(token.id), token.kind, quantity(token.count), percent(token.share, 2))
        for side, tokens in (("teacher", facts.teacher_uncommon), ("student", facts.student_uncommon))
        for token in tokens
    )
    return Section("vocabulary", "Shared vocabulary", sentences, details, columns, rows)


def suppression_section(report: AuditReport) -> Section:
    """What a loss on the common vocabulary would push down."""
    facts = report.suppression
    tokens = "  ".join(quoted(token.text) for token in facts.tokens[:10])
    sentences = (
        f"A loss on the common vocabulary pushes down {percent(facts.frequency)} of what the student writes; the "
        f"teacher has {percent(facts.common_teacher_mass)} of its mass on common tokens.",
        *((f"Most suppressed: {tokens}",) if tokens else ()),
    )
    columns = (
        Column("suppressed", numeric=False),
        Column("tokens", meaning="different tokens"),
        Column("of the student's text", meaning="share of all student tokens in the text"),
        Column("of their kind", meaning="share of the kind's occurrences that are suppressed"),
        Column("gradient", meaning="estimate of how hard they are pushed down: the sum of p · M over them"),
    )
    rows = tuple(
        (
            kind.kind,
            count(kind.tokens),
            percent(kind.frequency, 2),
            percent(kind.share_of_kind),
            number(kind.gradient, 4),
        )
        for kind in facts.kinds
    )
    title = "Suppression by GOLD-like losses (an estimate)"
    return Section("suppression", title, sentences, (facts.method,), columns, rows)


def initialisation_section(facts: Mapping[str, Any]) -> Section:
    """What each token of the target vocabulary would be made from."""
    if "error" in facts:
        return Section("initialisation", "The student's new vocabulary", (facts["error"],))
    tokens = facts["target"]["tokens"]
    pieces = facts["matches"]["pieces"] / tokens
    details = (
        f"Of {count(tokens)} target tokens {percent(facts['copied'])} are a token of the student's own vocabulary, "
        f"{percent(pieces)} are made of {number(facts['mean_pieces'], 1)} of its tokens on average, "
        f"{count(facts['unmatched']['count'])} have no counterpart.",
    )
    columns = (
        Column("match", numeric=False, meaning="what of the student's own vocabulary a target token corresponds to"),
        Column("tokens"),
        Column("share"),
    )
    rows = tuple((name, count(found), percent(found / tokens)) for name, found in facts["matches"].items() if found)
    return Section("initialisation", "The student's new vocabulary", (), details, columns, rows)


def chat_section(facts: Mapping[str, Any]) -> Section:
    """What the two chat templates can do."""
    columns = tuple(Column(heading, numeric=False) for heading in ("chat template", "teacher", "student"))
    sides = [_chat_properties(facts[side]) for side in ("teacher", "student")]
    names = dict.fromkeys(name for side in sides for name in side)
    rows = tuple((name, *(side.get(name, NOTHING) for side in sides)) for name in names)
    return Section("chat", "Chat templates", tuple(facts["notes"]), (), columns, rows)


def _chat_properties(side: Mapping[str, Any]) -> dict[str, str]:
    """A template's properties in words; a list of one where there is no template."""
    if not side["has_template"]:
        return {"template": "none"}
    return {
        "template": "yes",
        "roles": ", ".join(role for role, accepted in side["roles"].items() if accepted),
        "ends an answer with": side["end_of_turn"]["assistant"] or "no control token",
        "adds by itself": "nothing" if side["injected_text"] is None else quoted(side["injected_text"]),
        "renders reasoning of": _REASONING[side["reasoning"]],
        **{name.replace("_", " "): "yes" if side[name] else "no" for name in _CHAT_FLAGS},
    }
