"""Classes of text, checked character by character."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from alignment.audit.text_classes import CLASSES, classify

LONG = "numerals of 5 digits and more"
ALPHABET = "aé1२7 \t\n\r.,_+=()жи東한กि\u0301\u00a0\u200b🙂"


def _class_names(text: str) -> list[str]:
    """The class of each character, which all of its bytes must share."""
    classified = classify([text])
    names, position = [], 0
    for character in text:
        size = len(character.encode())
        found = {CLASSES[index] for index in classified.classes[position : position + size]}
        assert len(found) == 1
        names.append(found.pop())
        position += size
    assert position == len(classified.classes)
    return names


def _expected(text: str) -> list[str]:
    return [_expected_class(text, position) for position in range(len(text))]


def _expected_class(text: str, position: int) -> str:
    """The rules of the module, one character at a time."""
    character = text[position]
    category = unicodedata.category(character)
    if category == "Nd":
        start = end = position
        while start > 0 and unicodedata.category(text[start - 1]) == "Nd":
            start -= 1
        while end < len(text) and unicodedata.category(text[end]) == "Nd":
            end += 1
        length = end - start
        return LONG if length >= 5 else f"numerals of {length} digit{'s' if length > 1 else ''}"
    if character == " ":
        return _expected_space(text, position)
    if character == "\t":
        return "tabs"
    if character in "\n\r":
        return "newlines"
    if character.isspace():
        return "other white space"
    if character == "\u0301":
        bearer = position
        while bearer > 0 and text[bearer] == "\u0301":
            bearer -= 1
        alone = text[bearer] == "\u0301" or text[bearer].isspace()
        return "other" if alone else _expected_class(text, bearer)
    if category[0] in "PS":
        return "punctuation" if category[0] == "P" else "symbols"
    scripts = {"a": "latin", "é": "latin", "ж": "cyrillic", "и": "cyrillic", "東": "han", "한": "hangul"}
    return (scripts | {"ก": "thai", "ि": "devanagari"}).get(character, "other")


def _expected_space(text: str, position: int) -> str:
    start, end = position, position
    while start > 0 and text[start - 1] == " ":
        start -= 1
    while end < len(text) and text[end] == " ":
        end += 1
    if end - start == 1 and end < len(text) and not text[end].isspace():
        return _expected_class(text, end) if text[end] != "\u0301" else "other"
    return "indentation" if start == 0 or text[start - 1] in "\n\r" else "space runs"


def test_a_line_of_everything():
    text = "if x  ==  42: # naïve 東京,\n\ty = 1234567"
    names = _class_names(text)
    assert names[text.index("x") - 1] == "latin", "a single space counts with the word after it"
    assert names[text.index("  ==")] == "space runs"
    assert names[text.index("42")] == "numerals of 2 digits"
    assert names[text.index("ï")] == "latin"
    assert names[text.index("東")] == names[text.index("京") - 2] == "han"
    assert names[text.index("\n")] == "newlines"
    assert names[text.index("\t")] == "tabs"
    assert names[text.index("1234567") - 1] == LONG
    assert names[text.index(":")] == "punctuation"
    assert names[text.index("==")] == "symbols"


@given(st.text(alphabet=ALPHABET, max_size=24))
def test_classes_follow_the_rules_character_by_character(text):
    assert _class_names(text) == _expected(text)


@given(st.lists(st.text(alphabet=ALPHABET, max_size=12), max_size=5))
def test_documents_do_not_touch(texts):
    together = classify(texts)
    alone = [classify([text]) for text in texts]
    assert together.text.tobytes() == "".join(texts).encode()
    assert together.starts.tolist() == np.cumsum([0, *(len(text.encode()) for text in texts)]).tolist()
    for field in ("classes", "code"):
        expected = [value for one in alone for value in getattr(one, field).tolist()]
        assert getattr(together, field).tolist() == expected


@given(st.text(max_size=20))
def test_every_byte_of_arbitrary_unicode_has_a_class(text):
    classified = classify([text])
    assert len(classified.classes) == len(classified.code) == len(text.encode())
    assert classified.classes.max(initial=0) < len(CLASSES)


@pytest.mark.parametrize(
    "script", ["latin", "greek", "cyrillic", "arabic", "hebrew", "devanagari", "thai", "hiragana", "hangul", "han"]
)
def test_letters_have_the_script_that_unicode_gives_them(script):
    letters = [chr(code) for code in range(0xFFFF) if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lo")]
    classified = classify(letters)
    ours = {
        letter
        for letter, index in zip(letters, classified.classes[classified.starts[:-1]], strict=True)
        if CLASSES[index] == script
    }
    theirs = {letter for letter in letters if regex.fullmatch(rf"\p{{Script={script}}}", letter)}
    assert len(theirs) > 20
    assert len(ours & theirs) / len(ours | theirs) > 0.98


def test_program_code_is_told_from_prose():
    source = Path(__file__).read_text(encoding="utf-8")
    prose = (
        "Tokens are byte strings; two tokenizations of one text meet where their boundaries do (and only there).\n"
        "A chunk is the smallest span that both cut out.\n\nIt may be one token, or several on either side, e.g. 3."
    )
    classified = classify([source, prose])
    end = classified.starts[1]
    assert classified.code[:end].mean() > 0.8
    assert not classified.code[end:].any()


def test_a_blank_line_separates_prose_from_code():
    text = "A word of explanation.\n\nx = f(a[0]) + {1: 2}\n\nAnother word."
    code = classify([text]).code
    assert [bool(code[text.index(word)]) for word in ("explanation", "x =", "Another")] == [False, True, False]


def test_lone_surrogates_are_refused():
    with pytest.raises(UnicodeEncodeError):
        classify(["a\ud800"])
