"""The report of a vocabulary alignment: every number counted by hand."""

from __future__ import annotations

import json

from vocab_toys import LLAMA_LIKE_VIEW, SOURCE, SOURCE_VIEW, byte_level

from alignment.byte_models import byte_model
from alignment.byte_view import ByteView
from alignment.vocab import align_vocabularies
from alignment.vocab_report import describe

MODEL = byte_model(SOURCE, SOURCE_VIEW)


def test_the_report_counts_what_was_found() -> None:
    target = ByteView.from_token_bytes([b"the", b"then", b"things", None, b" 12", b"the\xe2"])
    alignment = align_vocabularies(SOURCE_VIEW, target, model=MODEL)
    report = describe(alignment, SOURCE_VIEW, target)
    assert report["schema_version"] == 1
    assert {name: count for name, count in report["matches"].items() if count} == {"none": 1, "bytes": 1, "pieces": 4}
    assert (report["shared"], report["copied"], report["coverage"]) == (1 / 6, 1 / 6, 5 / 6)
    assert report["mean_pieces"] == 2.5  # the+n, th+ing+s, " "+1+2, the+E2
    assert report["anchors"] == 1
    assert report["unmatched"] == {"count": 1, "tokens": {"3": "<special_3>"}}
    assert report["fingerprint"] == alignment.fingerprint
    assert report["source"]["fingerprint"] == SOURCE_VIEW.fingerprint
    assert report["target"]["fingerprint"] == target.fingerprint
    assert (report["target"]["size"], report["target"]["tokens"]) == (6, 6)


def test_the_shares_of_a_flag_are_among_the_tokens_that_have_it() -> None:
    target = ByteView.from_token_bytes([b"the", b"then", b" the", b" then", b" thing", None])
    flags = describe(align_vocabularies(SOURCE_VIEW, target, model=MODEL), SOURCE_VIEW, target)["flags"]
    assert flags["continuation"] == {"tokens": 2, "shared": 0.5, "copied": 0.5, "coverage": 1.0}
    assert flags["word_start"] == {"tokens": 3, "shared": 1 / 3, "copied": 1 / 3, "coverage": 1.0}
    assert flags["special"] == {"tokens": 1, "shared": 0.0, "copied": 0.0, "coverage": 0.0}
    assert flags["byte_fallback"] == {"tokens": 0, "shared": None, "copied": None, "coverage": None}


def test_ids_that_do_not_exist_are_not_counted() -> None:
    target = ByteView.from_tokenizer(byte_level([], missing=b"ab"))
    report = describe(align_vocabularies(SOURCE_VIEW, target), SOURCE_VIEW, target)
    assert (report["target"]["size"], report["target"]["tokens"]) == (256, 254)
    assert (report["matches"]["bytes"], report["coverage"], report["unmatched"]["count"]) == (254, 1.0, 0)


def test_a_long_list_of_unmatched_tokens_is_cut_and_counted() -> None:
    target = ByteView.from_token_bytes([None] * 150)
    unmatched = describe(align_vocabularies(SOURCE_VIEW, target), SOURCE_VIEW, target)["unmatched"]
    assert unmatched["count"] == 150
    assert list(unmatched["tokens"]) == [str(token) for token in range(100)]


def test_the_report_says_how_numbers_are_cut_and_what_the_tokenizers_can_spell() -> None:
    target = ByteView.from_token_bytes([b"1", b"2"])
    report = describe(align_vocabularies(LLAMA_LIKE_VIEW, target), LLAMA_LIKE_VIEW, target)
    assert report["digits"]["verdict"] == "unknown"
    assert report["source"]["digit_scheme"] == LLAMA_LIKE_VIEW.digit_scheme
    for side, view in (("source", LLAMA_LIKE_VIEW), ("target", target)):
        assert report[side]["exact"] == view.exact
        assert report[side]["inexact_reasons"] == list(view.inexact_reasons)


def test_the_report_is_plain_json_and_two_reports_are_equal() -> None:
    target = ByteView.from_token_bytes([b"the", b"\xff", None])
    alignment = align_vocabularies(SOURCE_VIEW, target, model=MODEL)
    first = describe(alignment, SOURCE_VIEW, target)
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert describe(alignment, SOURCE_VIEW, target) == first
