"""Misspellings: what each kind does to a word, which words it takes, and that the same seed gives the same text."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.evaluation.robustness.options import NoiseOptions, Perturbation
from stages.evaluation.robustness.perturbations import CHANGES, WORD, perturb, words_changed

KINDS = get_args(Perturbation)
TEXT = "The quick brown fox jumps over lazy dogs, although nobody remembers 3 Kilimanjaros or its 12345 snows_of_old."
LATIN = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"), min_size=4, max_size=12)
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _near(first: str, second: str) -> bool:
    return any(abs(row.find(first.lower()) - row.find(second.lower())) == 1 for row in KEYS if first.lower() in row)


def _differences(word: str, other: str) -> list[tuple[str, str]]:
    assert len(word) == len(other)
    return [(a, b) for a, b in zip(word, other, strict=True) if a != b]


def _is_swap(word: str, other: str) -> bool:
    found = _differences(word, other)
    return not found or (len(found) == 2 and found[0] == found[1][::-1])


def _is_keyboard(word: str, other: str) -> bool:
    ((old, new),) = _differences(word, other)
    return _near(old, new) and old.isupper() == new.isupper()


def _is_diacritic(word: str, other: str) -> bool:
    plain = "".join(letter for letter in unicodedata.normalize("NFD", other) if not unicodedata.combining(letter))
    return plain == word and len(_differences(word, unicodedata.normalize("NFC", other))) <= 1


def _is_homoglyph(word: str, other: str) -> bool:
    return all(unicodedata.name(new).startswith("CYRILLIC") for _, new in _differences(word, other))


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "swap": _is_swap,
    "delete": lambda word, other: (
        other[0] == word[0] and other in {word[:place] + word[place + 1 :] for place in range(len(word))}
    ),
    "duplicate": lambda word, other: other in {word[: at + 1] + word[at:] for at in range(len(word))},
    "keyboard": _is_keyboard,
    "case": lambda word, other: other != word and other.casefold() == word.casefold(),
    "homoglyph": _is_homoglyph,
    "diacritic": _is_diacritic,
    "spacing": lambda word, other: len(other.split()) == 2 and other.replace(" ", "") == word,
    "ocr": lambda word, other: sum(a != b for a, b in zip(word, other, strict=False)) >= (other != word),
}


def test_every_kind_is_checked():
    assert set(CHECKS) == set(CHANGES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@given(word=LATIN, seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_a_kind_does_to_a_word_what_it_says(kind, word, seed):
    assert CHECKS[kind](word, perturb(word, kind, 1.0, seed))


@pytest.mark.parametrize("kind", KINDS)
def test_only_words_of_four_letters_change(kind):
    assert perturb(TEXT, kind, 0.0, 0) == TEXT
    changed = perturb(TEXT, kind, 1.0, 0)
    assert changed.startswith("The ")
    assert " fox " in changed
    assert " 3 " in changed
    assert " 12345 " in changed
    assert changed.endswith("s_of_old.") or "_of_" in changed
    assert words_changed(TEXT, kind, 1.0, 0) >= 8


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_at_a_low_severity_changes_in_the_same_way_at_a_higher_one(kind):
    words = WORD.findall(TEXT)
    low, high = (perturb("\n".join(words), kind, severity, 5).split("\n") for severity in (0.3, 0.7))
    moved = [place for place, word in enumerate(words) if low[place] != word]
    assert moved
    assert [low[place] for place in moved] == [high[place] for place in moved]
    assert sum(a != b for a, b in zip(high, words, strict=True)) > len(moved)


def test_the_share_of_changed_words_is_the_severity():
    text = "word " * 4000
    for severity in (0.1, 0.5):
        # Four standard deviations of a binomial share.
        assert words_changed(text, "duplicate", severity, 0) / 4000 == pytest.approx(severity, abs=0.032)


def test_the_same_seed_gives_the_same_text_and_another_one_another():
    assert perturb("The quick brown fox jumps over lazy dogs, although nobody", "swap", 1.0, 0, "a") == (
        "The qiuck brwon fox jupms oevr layz dosg, alhtough nobdoy"
    )
    assert perturb(TEXT, "swap", 1.0, 1) != perturb(TEXT, "swap", 1.0, 2)
    assert perturb(TEXT, "swap", 1.0, 1) != perturb(TEXT, "delete", 1.0, 1)


def test_words_without_a_letter_that_a_kind_knows_stay():
    assert perturb("москва", "keyboard", 1.0, 0) == "москва"
    assert words_changed("москва", "keyboard", 1.0, 0) == 0
    assert perturb("aaaa", "swap", 1.0, 0) == "aaaa"
    assert perturb("москва", "case", 1.0, 0) == "МОСКВА"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbations": ["swap", "swap"]}, "more than once"),
        ({"severities": [0.3, 0.1]}, "from low to high"),
        ({"severities": [0.0]}, "above 0"),
        ({"severities": [1.5]}, "at most 1"),
        ({"perturbations": []}, "at least 1"),
        ({"perturbations": ["typo"]}, "typo"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NoiseOptions.model_validate(options)
