"""Every rule of the recommendation on either side of its threshold."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from toy_tokenizers import byte_level, fast

from alignment.audit import Audit
from alignment.audit.measurements import Measurements, SuppressedKind
from alignment.audit.recommend import recommend
from alignment.audit.vocabulary import token_kinds
from alignment.byte_view import ByteView


@pytest.fixture(scope="module")
def agreeable() -> Measurements:
    """A pair that differs in one token that the text hardly has, so that every objective but ULD may be used."""
    teacher = ByteView.from_tokenizer(fast(byte_level(("a", "b"))))
    student = ByteView.from_tokenizer(fast(byte_level(("a", "b"), ("q", "x"))))
    audit = Audit(teacher, student)
    audit.add("text", 1.0, ["some words, all of them shared. " * 20 + "qx 7"])
    return audit.report()


def _verdicts(found: Measurements) -> dict[str, str]:
    return {advice.objective: advice.verdict for advice in recommend(found).objectives}


def _topics(found: Measurements, level: str) -> list[str]:
    return [finding.topic for finding in recommend(found).findings if finding.level == level]


def test_an_agreeable_pair_allows_everything_that_sees_tokens(agreeable):
    assert _verdicts(agreeable) == {
        "same_vocabulary": "avoid",
        "alm": "recommended",
        "bpm": "possible",
        "strict": "possible",
        "gold": "possible",
        "simct": "possible",
        "xtoken": "possible",
        "uld": "avoid",
    }
    assert _topics(agreeable, "warning") == []


@pytest.mark.parametrize(("by_text", "verdict"), [(0.969, "avoid"), (0.97, "possible")])
def test_losses_on_the_common_vocabulary_need_most_tokens_to_be_common(agreeable, by_text, verdict):
    for field in ("teacher_by_text", "student_by_text"):
        found = replace(agreeable, vocabulary=replace(agreeable.vocabulary, **{field: by_text}))
        assert (_verdicts(found)["gold"], _verdicts(found)["simct"]) == (verdict, verdict)


@pytest.mark.parametrize(("share", "verdict"), [(0.0009, "possible"), (0.001, "avoid")])
def test_a_clash_of_digits_matters_where_there_are_numbers(agreeable, share, verdict):
    found = replace(agreeable, digits=replace(agreeable.digits, verdict="clash", share_of_bytes=share))
    assert _verdicts(found)["gold"] == verdict
    assert ("digits" in _topics(found, "warning")) == (verdict == "avoid")


@pytest.mark.parametrize("kind", ["newlines and spaces", "runs of spaces", "tabs"])
@pytest.mark.parametrize(("frequency", "verdict"), [(0.0049, "possible"), (0.005, "avoid")])
def test_suppressed_white_space_rules_out_the_common_vocabulary(agreeable, kind, frequency, verdict):
    kinds = (SuppressedKind(kind, 1, frequency, frequency, 1.0),)
    found = replace(agreeable, suppression=replace(agreeable.suppression, kinds=kinds))
    assert _verdicts(found)["gold"] == verdict
    advice = next(advice for advice in recommend(found).objectives if advice.objective == "xtoken")
    assert ("P-KL" in advice.reason) == (verdict == "avoid")


@pytest.mark.parametrize(("one_to_one", "verdict"), [(0.84, "avoid"), (0.86, "possible")])
def test_strict_needs_mostly_one_to_one_chunks(agreeable, one_to_one, verdict):
    chunks = replace(agreeable.chunks, per_student_token=1.0, shapes={"1:1": one_to_one})
    assert _verdicts(replace(agreeable, chunks=chunks))["strict"] == verdict


@pytest.mark.parametrize(("coverage", "level"), [(0.949, "warning"), (0.951, "ok")])
def test_low_coverage_of_a_domain_is_a_warning(agreeable, coverage, level):
    found = replace(agreeable, domains=(replace(agreeable.domains[0], coverage=coverage),))
    assert "coverage" in _topics(found, level)


def test_targets_exact_in_bytes_need_exact_bytes(agreeable):
    lost = 0.06 * agreeable.overall.bytes
    found = replace(agreeable, rejections=replace(agreeable.rejections, student_inexact_bytes=lost))
    assert _verdicts(found)["bpm"] == "avoid"


@pytest.mark.parametrize(("ratio", "noted"), [(0.49, True), (0.51, False), (1.99, False), (2.01, True)])
def test_very_different_lengths_are_noted(agreeable, ratio, noted):
    found = replace(agreeable, overall=replace(agreeable.overall, length_ratio=ratio))
    assert ("length" in _topics(found, "note")) == noted


def test_every_verdict_names_its_source(agreeable):
    advice = recommend(agreeable)
    assert all(item.reason and re.search(r"arXiv \d{4}\.\d{5}", item.source) for item in advice.objectives)
    assert all(finding.source for finding in advice.findings)


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        (b" 2024", "numerals of 4 digits"),
        (b" word", "letters (latin)"),
        ("слово".encode(), "letters (cyrillic)"),
        ("aд".encode(), "letters"),
        (b" ", "space"),
        (b"        ", "runs of spaces"),
        (b"\n    ", "newlines and spaces"),
        (b"  \n\n", "newlines and spaces"),
        (b"\n\n\n", "newlines"),
        (b"\t\t", "tabs"),
        (b"\t ", "other white space"),
        (b" ()", "punctuation and symbols"),
        (b"x=1", "mixed"),
        (b"\xe6\x9d", "part of a character"),
        (b"", "no text"),
    ],
)
def test_tokens_in_words(token, kind):
    assert token_kinds([b"before", token, b"after"])[1] == kind
