"""The five digit schemes, found in real pipelines, and what is said about a pair of them."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from tokenizers import Regex, pre_tokenizers
from vocab_toys import byte_level

from alignment.byte_view import ByteView, DigitScheme
from alignment.digit_verdict import digit_verdict

# Every pair and triple of digits is a token, so that only the pre-tokenizer decides where numbers are cut.
DIGITS = [bytes([digit]) for digit in b"0123456789"]
PAIRS = [(left, right) for left in DIGITS for right in DIGITS]
TRIPLES = [(left + middle, right) for left, middle in PAIRS for right in DIGITS]
SCHEMES = get_args(DigitScheme)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


PIPELINES = {
    "single": pre_tokenizers.Digits(individual_digits=True),
    "up_to_3_left": split(r"\d{1,3}"),
    "up_to_3_right": split(r"\d{1,3}(?=(?:\d{3})*(?!\d))"),
    "free": None,
}


@pytest.mark.parametrize("scheme", PIPELINES)
def test_the_scheme_is_found_in_the_pipeline(scheme: str) -> None:
    tokenizer = byte_level([*PAIRS, *TRIPLES], pre_tokenizer=PIPELINES[scheme])
    assert ByteView.from_tokenizer(tokenizer).digit_scheme == scheme


def test_a_tokenizer_that_cannot_encode_digits_has_no_scheme() -> None:
    assert ByteView.from_token_bytes(DIGITS).digit_scheme == "none"


def test_all_schemes_are_covered() -> None:
    assert {*PIPELINES, "none"} == set(SCHEMES)


@pytest.mark.parametrize(("source", "target"), itertools.product(SCHEMES, SCHEMES))
def test_every_pair_has_its_verdict(source: DigitScheme, target: DigitScheme) -> None:
    found = digit_verdict(source, target)
    expected = "unknown" if "none" in (source, target) else "same" if source == target else "clash"
    assert found.verdict == expected
    assert ("arithmetic suffers" in found.sentence) == (expected == "clash")


def test_the_sentences_are_for_a_person() -> None:
    assert digit_verdict("single", "up_to_3_left").sentence.startswith(
        "the source cuts numbers after every digit, the target into threes counted from the left: arithmetic suffers"
    )
    assert digit_verdict("up_to_3_right", "up_to_3_right").sentence == (
        "both cut numbers into threes counted from the right"
    )
    assert digit_verdict("single", "free", names=("teacher", "student")).sentence == (
        "the teacher cuts numbers after every digit, the student wherever its merges do: arithmetic suffers most from "
        "such a change; prefer a student tokenizer that cuts numbers as the teacher does"
    )
    assert digit_verdict("free", "none", names=("teacher", "student")).sentence.startswith("the student does not")
    assert "not always the same place" in digit_verdict("free", "free").sentence
    unknown = "so whether numbers are cut alike is not known"
    assert digit_verdict("none", "free").sentence == f"the source does not encode digits exactly, {unknown}"
    assert digit_verdict("free", "none").sentence == f"the target does not encode digits exactly, {unknown}"
    assert digit_verdict("none", "none").sentence == f"neither tokenizer encodes digits exactly, {unknown}"
