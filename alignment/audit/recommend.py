"""What the measurements say about the objective to choose: every rule in one table, each with the number it looked at.

The thresholds are judgement on published evidence; ``source`` names the paper, or says that it is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from alignment.audit.measurements import Measurements
from alignment.audit.report import Finding, Level, ObjectiveAdvice, Recommendation, Verdict
from alignment.audit.text_classes import LONG_NUMERALS, NUMERALS
from alignment.audit.vocabulary import WHITE_SPACE_KINDS, share

LOW_COVERAGE = 0.95
"""Below this share of bytes inside chunks training loses signal (alm.md §2)."""
COMMON_ENOUGH = 0.97
"""Share of the tokens in the text with a counterpart from which a loss on the common vocabulary sees nearly all."""
STRICT_ENOUGH = 0.85
"""Share of student tokens in one-to-one chunks; published strict runs kept 0.856 to 0.970."""
SUPPRESSED_WHITE_SPACE = 0.005
"""Share of the student's tokens that are white space without a counterpart."""
NUMERALS_MATTER = 0.001
"""Share of the text's bytes in numerals from which a clash of digit schemes is a warning."""
FUSED_MOSTLY = 0.9
"""Share of a script's chunks that the gamma rule joins from which little signal is left."""
SCRIPT_MATTERS = 0.001
"""Share of the text's bytes from which a script is worth a finding."""
LONG_RATIO = 2.0
"""Tokens of one side per token of the other from which windows of equal tokens waste much of one side."""

_OURS = "our judgement"

Judgement = tuple[Verdict, str]


def recommend(found: Measurements) -> Recommendation:
    """The objective to start from, a verdict on each family, and findings, warnings first."""
    objectives = tuple(ObjectiveAdvice(name, *judge(found), source) for name, source, judge in _OBJECTIVES)
    objective = next(advice.objective for advice in objectives if advice.verdict == "recommended")
    levels: tuple[Level, ...] = ("warning", "note", "ok")
    findings = sorted(_findings(found), key=lambda finding: levels.index(finding.level))
    return Recommendation(objective, objectives, tuple(findings))


def _same_vocabulary(found: Measurements) -> Judgement:
    if found.vocabulary.identical:
        return "recommended", "the vocabularies are identical: compare whole distributions token by token"
    return "avoid", f"the vocabularies differ: {found.vocabulary.common:,} tokens are common"


def _alm(found: Measurements) -> Judgement:
    if found.vocabulary.identical:
        return "possible", "the vocabularies are identical, so a loss on whole distributions tells more"
    reason = (
        f"{_percent(found.overall.coverage)} of the bytes are in chunks, and chunk scores need no common vocabulary"
    )
    if found.student.longest_token == 1:
        reason += "; add cross-entropy, and hidden states if the widths agree, for a student of bytes"
    return "recommended", reason


def _byte_prefix(found: Measurements) -> Judgement:
    lost = found.rejections.teacher_inexact_bytes + found.rejections.student_inexact_bytes
    if lost > (1 - LOW_COVERAGE) * found.overall.bytes:
        return "avoid", f"it needs exact bytes, and tokens do not spell {lost:,.0f} bytes of the text"
    return "possible", "targets are exact in bytes; student tokens that are only spaces must be left out"


def _common_vocabulary(found: Measurements) -> Judgement:
    """Losses on the common vocabulary, which push every other student token down."""
    reasons = []
    white_space = _suppressed(found, WHITE_SPACE_KINDS)
    if white_space >= SUPPRESSED_WHITE_SPACE:
        reasons.append(f"{_percent(white_space)} of the student's tokens are white space that it would push down")
    if found.digits.verdict == "clash" and _at_least(found.digits.share_of_bytes, NUMERALS_MATTER):
        teacher, student = _numerals_without_counterpart(found)
        reasons.append(
            f"numbers are cut differently: numerals without a counterpart are {_percent(teacher)} of the teacher's "
            f"and {_percent(student)} of the student's tokens"
        )
    return ("avoid", "; ".join(reasons)) if reasons else _mostly_common(found)


def _mostly_common(found: Measurements) -> Judgement:
    teacher, student = found.vocabulary.teacher_by_text, found.vocabulary.student_by_text
    reason = (
        f"{_percent(teacher)} of the teacher's and {_percent(student)} of the student's tokens in the text have a "
        f"counterpart; wanted: {COMMON_ENOUGH:.0%}"
    )
    enough = _at_least(teacher, COMMON_ENOUGH) and _at_least(student, COMMON_ENOUGH)
    return ("possible" if enough else "avoid"), reason


def _strict(found: Measurements) -> Judgement:
    kept = _strict_share(found)
    verdict: Verdict = "possible" if _at_least(kept, STRICT_ENOUGH) else "avoid"
    return verdict, f"{_percent(kept)} of the student's tokens are in one-to-one chunks; wanted: {STRICT_ENOUGH:.0%}"


def _projection(found: Measurements) -> Judgement:
    verdict, reason = _common_vocabulary(found)
    if verdict == "possible":
        return "possible", f"in its variant H-KL, on the common vocabulary: {reason}"
    return "possible", f"in its variant P-KL, which projects all tokens: on the common vocabulary, {reason}"


def _sorted_probabilities(_: Measurements) -> Judgement:
    return "avoid", "it compares sorted probabilities, so it does not see which token is meant"


_OBJECTIVES: tuple[tuple[str, str, Callable[[Measurements], Judgement]], ...] = (
    ("same_vocabulary", "arXiv 1503.02531", _same_vocabulary),
    ("alm", "arXiv 2503.20083", _alm),
    ("bpm", "arXiv 2607.22334", _byte_prefix),
    ("strict", "arXiv 2610.08448", _strict),
    ("gold", "TRL's GOLD trainer; arXiv 2605.21699, Proposition 1", _common_vocabulary),
    ("simct", "arXiv 2605.07711", _mostly_common),
    ("xtoken", "arXiv 2605.21699", _projection),
    ("uld", "arXiv 2402.12030", _sorted_probabilities),
)


def _findings(found: Measurements) -> Iterator[Finding]:
    if not found.text_bytes:
        yield Finding("warning", "data", "No text was read, so there is nothing to judge.", "")
        return
    yield _coverage(found)
    yield _digits(found)
    yield from _inexact(found)
    yield from _gamma(found)
    yield from _lengths(found)
    yield from _suppression(found)


def _coverage(found: Measurements) -> Finding:
    low = [part for part in found.domains if not _at_least(part.coverage, LOW_COVERAGE)]
    if not low:
        message = f"{_percent(found.overall.coverage)} of the bytes are in chunks."
        return Finding("ok", "coverage", message, _OURS)
    worst = ", ".join(f"{part.name} {_percent(part.coverage)}" for part in low)
    message = (
        f"Too few bytes are in chunks ({worst}; wanted: {LOW_COVERAGE:.0%}): see the text that training cannot use."
    )
    return Finding("warning", "coverage", message, _OURS)


def _digits(found: Measurements) -> Finding:
    share = f"Numerals are {_percent(found.digits.share_of_bytes)} of the text."
    message = f"{found.digits.sentence} {share}"
    if found.digits.verdict == "same":
        return Finding("ok", "digits", message, _OURS)
    matter = _at_least(found.digits.share_of_bytes, NUMERALS_MATTER)
    return Finding("warning" if matter else "note", "digits", message, _OURS)


def _inexact(found: Measurements) -> Iterator[Finding]:
    for side, facts, documents, lost in (
        ("teacher", found.teacher, found.rejections.teacher_inexact_documents, found.rejections.teacher_inexact_bytes),
        ("student", found.student, found.rejections.student_inexact_documents, found.rejections.student_inexact_bytes),
    ):
        if documents:
            message = (
                f"The {side}'s tokenizer does not reproduce {documents:,} of {found.documents:,} documents "
                f"({lost:,.0f} bytes): {'; '.join(facts.inexact_reasons) or 'its tokens do not spell the text'}. "
                "Chunks that touch these bytes are left out of training."
            )
            yield Finding("warning", "inexact text", message, _OURS)


def _gamma(found: Measurements) -> Iterator[Finding]:
    if found.vocabulary.identical:
        return
    fused = [
        part for part in found.scripts if _at_least(part.share, SCRIPT_MATTERS) and _at_least(part.fused, FUSED_MOSTLY)
    ]
    if fused:
        scripts = ", ".join(f"{part.name} {_percent(part.fused)}" for part in fused)
        message = (
            f"ALM's gamma rule would join most chunks of some scripts to the next, since no space follows ({scripts}): "
            "set gamma to 0 for such data."
        )
        yield Finding("warning", "gamma", message, "arXiv 2503.20083")


def _lengths(found: Measurements) -> Iterator[Finding]:
    ratio = found.overall.length_ratio
    if ratio is not None and not 1 / LONG_RATIO <= ratio <= LONG_RATIO:
        message = (
            f"The teacher has {ratio:.2f} tokens for one of the student's: windows are as long as the side with more "
            "tokens allows, and the student's context holds less or more text than the teacher's."
        )
        yield Finding("note", "length", message, _OURS)


def _suppression(found: Measurements) -> Iterator[Finding]:
    estimate = found.suppression
    if not found.vocabulary.identical and estimate.gradient:
        kinds = ", ".join(f"{kind.kind} {_percent(kind.frequency)}" for kind in estimate.kinds[:3])
        message = (
            f"Losses on the common vocabulary (GOLD) would push down {_percent(estimate.frequency)} of the student's "
            f"tokens in the text, most of all {kinds}. This is an estimate from token frequencies."
        )
        yield Finding("note", "suppression", message, "arXiv 2605.21699, Proposition 1")


def _strict_share(found: Measurements) -> float | None:
    """Share of student tokens in one-to-one chunks."""
    per_token = found.chunks.per_student_token
    return None if per_token is None else per_token * found.chunks.shapes.get("1:1", 0.0)


def _suppressed(found: Measurements, kinds: tuple[str, ...]) -> float:
    """Share of the student's tokens in the text that are of these kinds and have no counterpart."""
    return sum(entry.frequency for entry in found.suppression.kinds if entry.kind in kinds)


def _numerals_without_counterpart(found: Measurements) -> tuple[float | None, float | None]:
    """Their share of the teacher's and of the student's tokens in the text."""
    numerals = [part for part in found.classes if part.name in (*NUMERALS, LONG_NUMERALS)]
    teacher = sum(part.teacher_tokens * (1 - (part.teacher_common or 0.0)) for part in numerals)
    student = sum(part.student_tokens * (1 - (part.student_common or 0.0)) for part in numerals)
    return share(teacher, found.overall.teacher_tokens), share(student, found.overall.student_tokens)


def _at_least(value: float | None, threshold: float) -> bool:
    return value is not None and value >= threshold


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.2%}"
