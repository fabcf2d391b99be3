"""The audit as a whole: a pair worked by hand, sums over batches and weights, equal tokenizers, real ones."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tokenizers import byte_level, fast

from alignment.audit import Audit
from alignment.audit.report import AuditReport
from alignment.byte_view import ByteView

# Teacher: 10 | ␣a | ↵ | ␣ | ␣ | b      student: 1 | 0 | ␣a | ↵␣ | ␣ | b
TEXT = "10 a\n  b"
TEACHER = ByteView.from_tokenizer(fast(byte_level(("1", "0"), ("Ġ", "a"))))
STUDENT = ByteView.from_tokenizer(fast(byte_level(("Ġ", "a"), ("Ċ", "Ġ"))))
BYTES = ByteView.from_tokenizer(fast(byte_level()))


def _audit(teacher: ByteView, student: ByteView, *documents: tuple[str, float, list[str]]) -> AuditReport:
    audit = Audit(teacher, student)
    for domain, weight, texts in documents:
        audit.add(domain, weight, texts)
    return audit.report()


def _by_name(slices) -> dict:
    return {part.name: part for part in slices}


@pytest.fixture(scope="module")
def worked() -> AuditReport:
    return _audit(TEACHER, STUDENT, ("text", 1.0, [TEXT]))


def test_worked_overall(worked):
    overall = worked.overall
    assert (overall.bytes, overall.teacher_tokens, overall.student_tokens, overall.chunks) == (8, 6, 6, 5)
    assert overall.coverage == overall.teacher_token_coverage == overall.student_token_coverage == 1.0
    assert overall.one_to_one == 4 / 8
    assert overall.one_to_one_chunks == 3 / 5
    assert overall.teacher_common == overall.student_common == pytest.approx(5 / 6, abs=1e-4)
    assert overall.fused == 1 / 5, "only the second space is followed by no boundary"


def test_worked_classes(worked):
    classes = _by_name(worked.classes)
    assert {name: part.bytes for name, part in classes.items()} == {
        "words": 3,
        "numerals of 2 digits": 2,
        "indentation": 2,
        "newlines": 1,
    }
    assert (classes["indentation"].teacher_tokens, classes["indentation"].student_tokens) == (2, 1.5)
    assert classes["newlines"].student_tokens == 0.5
    assert classes["numerals of 2 digits"].teacher_common == 0
    assert classes["numerals of 2 digits"].length_ratio == 0.5
    assert [part.name for part in worked.scripts] == ["latin"]


def test_worked_chunks_and_groups(worked):
    assert worked.chunks.shapes == {"1:1": 3 / 5, "1:n": 1 / 5, "n:1": 1 / 5, "n:m": 0.0}
    assert [span.text for span in worked.chunks.longest] == ["10", "\n "]
    assert worked.boundaries.chunks_per_group == 5 / 4
    (group,) = worked.boundaries.longest_groups
    assert (group.text, group.start, group.chunks, group.bytes) == (" b", 6, 2, 2)


def test_worked_vocabulary_and_suppression(worked):
    vocabulary, suppression = worked.vocabulary, worked.suppression
    assert (vocabulary.common, vocabulary.jaccard) == (257, 257 / 259)
    assert vocabulary.teacher_by_text == vocabulary.student_by_text == 5 / 6
    assert [(use.text, use.kind) for use in vocabulary.teacher_uncommon] == [("10", "numerals of 2 digits")]
    assert suppression.common_teacher_mass == 5 / 6
    (token,) = suppression.tokens
    assert (token.text, token.kind, token.frequency) == ("\n ", "newlines and spaces", 1 / 6)
    assert token.gradient == pytest.approx(1 / 6 * 5 / 6)
    (kind,) = suppression.kinds
    assert (kind.kind, kind.tokens, kind.share_of_kind) == ("newlines and spaces", 1, 1.0)


def test_worked_digits_and_recommendation(worked):
    assert (worked.digits.student, worked.digits.verdict) == ("single", "clash")
    assert worked.digits.share_of_bytes == 2 / 8
    verdicts = {advice.objective: advice.verdict for advice in worked.recommendation.objectives}
    assert worked.recommendation.objective == "alm"
    assert verdicts["gold"] == verdicts["same_vocabulary"] == "avoid"
    assert worked.recommendation.findings[0].level == "warning"


def test_worked_contexts(worked):
    assert worked.contexts[0].tokens == 512
    assert worked.contexts[0].teacher_bytes == pytest.approx(512 * 8 / 6)


TEXTS = st.lists(st.text(alphabet="ab10 \n.é東\t", min_size=1, max_size=30), min_size=2, max_size=8)


@settings(max_examples=30, deadline=None)
@given(TEXTS, st.integers(1, 7))
def test_how_documents_are_handed_over_makes_no_difference(texts, cut):
    whole = _audit(TEACHER, STUDENT, ("text", 0.5, texts))
    halves = _audit(TEACHER, STUDENT, ("text", 0.5, texts[:cut]), ("text", 0.5, texts[cut:]))
    assert whole == halves


@settings(max_examples=20, deadline=None)
@given(TEXTS, TEXTS)
def test_a_weight_counts_documents_so_many_times(once, twice):
    weighted = _audit(TEACHER, STUDENT, ("once", 1.0, once), ("twice", 2.0, twice))
    repeated = _audit(TEACHER, STUDENT, ("once", 1.0, once), ("twice", 1.0, twice + twice))
    for field in ("overall", "domains", "classes", "scripts", "prose_and_code", "vocabulary", "suppression"):
        assert getattr(weighted, field) == getattr(repeated, field)
    assert weighted.documents == len(once) + len(twice)


@settings(max_examples=30, deadline=None)
@given(TEXTS)
def test_classes_scripts_and_domains_add_up_to_the_whole(texts):
    report = _audit(TEACHER, STUDENT, ("text", 1.0, texts[:1]), ("more", 3.0, texts[1:]))
    for parts in (report.classes, report.domains, report.prose_and_code):
        for field in ("bytes", "teacher_tokens", "student_tokens", "chunks"):
            total = sum(getattr(part, field) for part in parts)
            assert total == pytest.approx(getattr(report.overall, field), abs=0.01)
        assert sum(part.share for part in parts) == pytest.approx(1.0)
    words = _by_name(report.classes).get("words")
    assert sum(part.bytes for part in report.scripts) == (words.bytes if words else 0)


@settings(max_examples=30, deadline=None)
@given(TEXTS)
def test_equal_tokenizers_have_nothing_to_reconcile(texts):
    report = _audit(TEACHER, TEACHER, ("text", 1.0, texts))
    overall = report.overall
    assert overall.coverage == overall.one_to_one == overall.length_ratio == overall.teacher_common == 1.0
    assert report.chunks.per_teacher_token == report.chunks.per_student_token == 1.0
    assert report.chunks.longest == ()
    assert report.vocabulary.identical
    assert report.suppression.gradient == 0
    assert report.suppression.tokens == report.vocabulary.teacher_uncommon == ()
    assert report.digits.verdict == "same"
    assert report.recommendation.objective == "same_vocabulary"
    assert not [finding for finding in report.recommendation.findings if finding.level == "warning"]


def test_a_student_of_bytes_is_told_to_use_more_than_chunks():
    report = _audit(TEACHER, BYTES, ("text", 1.0, [TEXT]))
    advice = next(advice for advice in report.recommendation.objectives if advice.objective == "alm")
    assert report.student.longest_token == 1
    assert advice.verdict == "recommended"
    assert "cross-entropy" in advice.reason


def test_text_without_spaces_warns_of_the_gamma_rule():
    report = _audit(BYTES, TEACHER, ("text", 1.0, ["東京都港区芝公園" * 6]))
    assert _by_name(report.scripts)["han"].fused == pytest.approx(1 - 1 / 144)
    assert [finding.topic for finding in report.recommendation.findings if finding.level == "warning"] == ["gamma"]
    assert report.boundaries.longest_groups[0].bytes == 144
    assert report.boundaries.longest_groups[0].text.endswith("…")


def test_the_same_long_text_is_shown_once():
    report = _audit(TEACHER, BYTES, ("text", 1.0, ["10 10 10", "10"]), ("more", 1.0, ["10"]))
    assert [(span.text, span.domain, span.document, span.start) for span in report.chunks.longest] == [
        ("10", "text", 0, 0)
    ]


def test_documents_are_numbered_through_their_domain():
    audit = Audit(TEACHER, BYTES)
    audit.add("text", 1.0, ["b", "b"])
    audit.add("other", 1.0, ["b"])
    audit.add("text", 1.0, ["b", "b 10"])
    (span,) = audit.report().chunks.longest
    assert (span.domain, span.document, span.start) == ("text", 3, 2)


def test_no_text_is_reported_as_such():
    report = Audit(TEACHER, STUDENT).report()
    assert report.overall.coverage is None
    assert report.suppression.gradient is None
    assert [finding.topic for finding in report.recommendation.findings] == ["data"]
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(ValueError, match="domain 'text': the weight must be positive"):
        Audit(TEACHER, STUDENT).add("text", weight, [TEXT])


def test_the_json_has_every_field_and_a_version(worked):
    loaded = json.loads(json.dumps(worked.to_json(), allow_nan=False))
    assert loaded["schema_version"] == 1
    assert set(loaded) == {"schema_version", *(field.name for field in dataclasses.fields(worked))}
    assert loaded["overall"]["chunks"] == 5


@pytest.mark.demo
def test_gpt2_and_smollm2(gpt2_tokenizer_dir, smollm2_dir):
    teacher, student = ByteView.from_tokenizer(gpt2_tokenizer_dir), ByteView.from_tokenizer(smollm2_dir)
    code = "def f(x):\n    if x > 10:\n        return x + 2024\n    return None\n"
    report = _audit(teacher, student, ("code", 1.0, [code] * 20), ("prose", 1.0, ["The people of the union agree.\n"]))
    assert report.overall.coverage == 1.0
    assert report.vocabulary.common == 36_960
    assert report.digits.verdict == "clash"
    kinds = [kind.kind for kind in report.suppression.kinds]
    assert kinds[0] == "newlines and spaces", "SmolLM2 joins line ends and indentation, GPT-2 never does"
    assert _by_name(report.classes)["numerals of 4 digits"].student_tokens_per_byte == pytest.approx(1.0, abs=1e-3)
    gold = next(advice for advice in report.recommendation.objectives if advice.objective == "gold")
    assert gold.verdict == "avoid"
    assert "white space" in gold.reason


def test_empty_documents_count_as_documents_and_nothing_else():
    with_empty = _audit(TEACHER, STUDENT, ("text", 1.0, ["", TEXT, ""]), ("none", 1.0, [""]))
    assert with_empty.documents == 4
    assert with_empty.overall == _audit(TEACHER, STUDENT, ("text", 1.0, [TEXT])).overall
    assert with_empty.rejections.documents == 0
