"""LangGame's questions have one right answer, are balanced, and keep tests and training apart."""

from __future__ import annotations

import re
from collections import Counter
from string import ascii_lowercase

import pytest

from stages.evaluation.suites.langgame import CELLS, TYPES, make
from stages.evaluation.suites.langgame_templates import phrase
from stages.evaluation.suites.options import LangGameOptions
from stages.evaluation.suites.questions import Question, Suite, draws
from stages.evaluation.suites.words import lexicon
from stages.stage import StageError

TAIL = {
    "most_letter": r"has the most letter '(\w)'s\?",
    "contains": r"contains '(\w+)'\?",
    "starts_with": r"starts with '(\w+)'\?",
    "ends_with": r"ends with '(\w+)'\?",
    "longest": r"is the longest(\?)",
    "shortest": r"is the shortest(\?)",
}


@pytest.fixture(scope="module")
def test_items() -> Suite:
    return make(LangGameOptions(items=len(CELLS) * 104), "test")


@pytest.fixture(scope="module")
def training_items() -> Suite:
    return make(LangGameOptions(items=6 * 104), "train")


def _shown(question: Question) -> list[str]:
    """The options as the prompt lists them."""
    return [f" {word}" for word in re.search(r"\[ (.*?)\]", question.prompt)[1].split(", ")]


def _fitting(question: Question) -> list[str]:
    """The options that the printed question asks for, found from the printed text alone."""
    (asked,) = {
        (kind, found[1]) for kind, pattern in TAIL.items() if (found := re.search(pattern, question.prompt)) is not None
    }
    kind, part = asked
    assert kind == question.groups["type"]
    words = [option.removeprefix(" ") for option in _shown(question)]
    key = {
        "most_letter": lambda word: word.count(part),
        "contains": lambda word: part in word,
        "starts_with": lambda word: word.startswith(part),
        "ends_with": lambda word: word.endswith(part),
        "longest": len,
        "shortest": lambda word: -len(word),
    }[kind]
    best = max(map(key, words))
    return [f" {word}" for word in words if key(word) == best]


def test_every_question_has_exactly_the_answer_it_says(test_items, training_items):
    for question in (*test_items.questions, *training_items.questions):
        assert _fitting(question) == [question.answer]
        assert _shown(question) == list(question.options)
        assert len(set(question.options)) == 4


def test_the_continuation_that_is_scored_is_the_one_that_is_trained(test_items):
    # Defect 9 of the published code: "Answer: word" in training, "Answer:  word" in the test.
    for question in test_items.questions:
        assert question.prompt.endswith(" Answer:")
        assert all(re.fullmatch(r" \w+", option) for option in question.options)


def test_the_answer_stands_at_every_place_equally_often(test_items, training_items):
    for suite in (test_items, training_items):
        by_cell = Counter((question.groups["stratum"], question.groups["type"]) for question in suite.questions)
        places = Counter(
            (question.groups["stratum"], question.groups["type"], question.gold) for question in suite.questions
        )
        assert set(by_cell.values()) == {104}
        assert set(places.values()) == {26}


def test_the_letters_of_the_alphabet_are_asked_for_equally_often(training_items, test_items):
    asked = Counter(
        question.groups["letter"] for question in training_items.questions if question.groups["type"] == "most_letter"
    )
    assert asked == dict.fromkeys(ascii_lowercase, 4)
    held_out = {
        question.groups["letter"]
        for question in test_items.questions
        if question.groups["type"] == "most_letter" and question.groups["stratum"] == "held_out_words"
    }
    assert held_out == set(ascii_lowercase)


def test_strata_hold_out_what_they_say(test_items, training_items):
    words = lexicon()
    known = {f" {word}" for word in words.known}
    trained_sets = {frozenset(question.options) for question in training_items.questions}
    for question in training_items.questions:
        assert known.issuperset(question.options)
        assert "string" not in question.prompt
        assert "These are" not in question.prompt
    for question in test_items.questions:
        stratum = question.groups["stratum"]
        assert known.isdisjoint(question.options) == (stratum == "held_out_words")
        assert ("string" in question.prompt.split("[")[0] + question.prompt.split("]")[1]) == (
            stratum == "held_out_templates"
        )
        assert frozenset(question.options) not in trained_sets


def _relative_length(question: Question) -> float:
    kind = question.groups["type"]
    return len(re.search(TAIL[kind], question.prompt)[1]) / len(question.answer.strip())


def test_unseen_lengths_are_longer_than_any_in_training(test_items, training_items):
    for suite in (test_items, training_items):
        for question in suite.questions:
            unseen = question.groups["stratum"] == "unseen_lengths"
            if question.groups["type"] in ("contains", "starts_with", "ends_with"):
                assert (_relative_length(question) > 0.5) == unseen
            elif question.groups["type"] == "longest":
                assert (len(question.answer.strip()) >= 10) == unseen
            elif question.groups["type"] == "shortest":
                others = [option for option in question.options if option != question.answer]
                assert all((len(option.strip()) >= 9) == unseen for option in others)


def test_more_items_begin_with_the_same_ones(test_items):
    fewer = make(LangGameOptions(items=50), "test")
    assert list(fewer.questions) == list(test_items.questions[:50])
    assert make(LangGameOptions(items=50, seed=1), "test").questions_digest != fewer.questions_digest


def test_the_questions_of_this_version_stay_as_they_are():
    # Results are compared across machines and years: if this changes, raise VERSION.
    suite = make(LangGameOptions(), "test")
    assert (suite.version, suite.questions_digest[:16]) == (1, "96248caa06517168")


def test_fewer_items_than_kinds_are_refused():
    with pytest.raises(StageError, match=r"suites.langgame.items: 22 .* give 23 or more"):
        make(LangGameOptions(items=22), "test")
    assert {question.groups["type"] for question in make(LangGameOptions(items=6), "train").questions} == set(TYPES)


def test_phrase_lists_the_options_as_the_published_generator_does():
    prompts = {
        phrase("is the longest?", ["vary", "paragraph", "his", "student"], draws(number), held_out=False)
        for number in range(2000)
    }
    assert "Which word is the longest? The options are: [ vary, paragraph, his, student]. Answer:" in prompts
    assert "The possible words: [ vary, paragraph, his, student]. What choice is the longest? Answer:" in prompts
    held_out = {phrase("is the longest?", ["a", "b"], draws(number), held_out=True) for number in range(2000)}
    assert prompts.isdisjoint(held_out)
    assert "These are the strings: [ a, b]. Which string is the longest? Answer:" in held_out
