"""The edits and questions of the CUTE-like suite."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.suites.cute import make, read_quoted
from stages.evaluation.suites.cute_tasks import (
    Material,
    contains,
    deletion,
    insertion,
    letters_of,
    orth_of,
    sentence,
    similarity,
    spell,
    spell_inverse,
    spelled,
    substitution,
    swapping,
)
from stages.evaluation.suites.edits import delete, insert_after, near_edit, substitute, swap
from stages.evaluation.suites.options import CuteOptions
from stages.evaluation.suites.questions import Question, Suite
from stages.evaluation.suites.words import lexicon

THE = letters_of(lambda rng: "the")
OCTOPUS = Material(lambda rng: ("The", "octopus", "smiled"), sentence, "word", ("computers",))


@pytest.fixture(scope="module")
def suite() -> Suite:
    return make(CuteOptions(items=840), "test")


def test_the_rows_of_the_published_benchmark():
    rng = Random(0)
    assert spell(THE, rng).answer == "t h e"
    assert spell_inverse(THE, rng).answer == "the"
    assert insertion(tuple("the"), "m", "h", THE, rng).answer == "thme"
    assert deletion(tuple("the"), "t", THE, rng).answer == "he"
    assert substitution(tuple("the"), "c", "h", THE, rng).answer == "tce"
    assert swapping(tuple("the"), "e", "h", THE, rng).answer == "teh"
    letter_l = letters_of(lambda rng: "the").alphabet[11]
    only_l = Material(THE.units, THE.join, "letter", (letter_l,))
    assert contains(only_l, rng, holds=False)[:2] == ('Is the letter "l" in "the"?', "No")
    assert (
        insertion(("The", "octopus", "smiled"), "computers", "The", OCTOPUS, rng).answer
        == "The computers octopus smiled."
    )
    assert orth_of("is", "gis", "are", rng).answer == "gis"
    assert orth_of("is", "are", "gis", rng).answer == "gis"


def test_similarity_is_the_levenshtein_ratio():
    assert similarity("is", "gis") == pytest.approx(0.8)  # one insertion, five letters
    assert similarity("is", "are") == 0.0
    assert similarity("house", "mouse") == pytest.approx(0.8)  # one deletion, one insertion, ten letters


LETTERS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=8).map(tuple)


@given(LETTERS, st.sampled_from("wxyz"), st.integers(0, 7))
def test_edits_do_to_every_unit_what_str_replace_does(units, new, place):
    mark = units[place % len(units)]
    text = "".join(units)
    assert "".join(insert_after(units, new, mark)) == text.replace(mark, mark + new)
    assert "".join(delete(units, mark)) == text.replace(mark, "")
    assert "".join(substitute(units, new, mark)) == text.replace(mark, new)
    assert "".join(swap(units, mark, "b")) == text.translate(str.maketrans({mark: "b", "b": mark}))


@given(LETTERS, st.randoms(use_true_random=False))
def test_a_near_edit_is_one_slip(units, rng):
    slip = near_edit(units, "xyz", rng)
    assert abs(len(slip) - len(units)) <= 1
    assert similarity("".join(units), "".join(slip)) >= 1 - 2 / len(units + slip)


def _edited(question: Question) -> str | None:
    """What the printed question asks for, by another program than the one that made it."""
    *_, query = re.findall(r"Question: (.*)\nAnswer:", question.prompt)
    words = re.findall(r'"(.*?)"(?=[ ,.?:]|$)', query)
    kind, _, unit = question.groups["task"].partition("_")
    if kind not in ("ins", "del", "sub", "swap"):
        return None
    split = (lambda text: text.rstrip(".").split()) if unit == "word" else list
    join = (lambda units: " ".join(units) + ".") if unit == "word" else "".join
    units, rest = split(words[-1]), words[:-1]
    if kind == "del":
        return join([unit for unit in units if unit != rest[0]])
    if kind == "ins":
        return join([part for unit in units for part in ([unit, rest[0]] if unit == rest[1] else [unit])])
    if kind == "sub":
        return join([rest[1] if unit == rest[0] else unit for unit in units])
    assert [units.count(unit) for unit in rest] == [1, 1]
    return join([rest[1] if unit == rest[0] else rest[0] if unit == rest[1] else unit for unit in units])


def test_no_edit_leaves_its_text_as_it_is_and_each_answer_is_right(suite):
    seen = Counter()
    for question in suite.questions:
        expected = _edited(question)
        if expected is not None:
            source = re.findall(r'"(.*?)"(?=[ ,.?:]|$)', question.prompt.rsplit("Question: ", 1)[1].split("\n")[0])[-1]
            assert question.answer == f' "{expected}"'
            assert expected != source
            seen[question.groups["task"]] += 1
    assert len(seen) == 8


def test_spelling_and_containing_are_right(suite):
    for question in suite.questions:
        query = question.prompt.rsplit("Question: ", 1)[1]
        quoted = re.findall(r'"(.*?)"', query)
        answer = question.answer.strip(' "')
        task = question.groups["task"]
        if task == "spell":
            assert answer == " ".join(quoted[0])
        elif task == "spell_inverse":
            assert answer == quoted[0].replace(" ", "")
        elif task == "contains_char":
            assert answer == ("Yes" if quoted[0] in quoted[1] else "No")
        elif task == "contains_word":
            assert answer == ("Yes" if quoted[0] in quoted[1].rstrip(".").split() else "No")
        elif task == "orth":
            word, *others = quoted
            assert similarity(word, answer) > 0.7
            assert sorted(similarity(word, other) < 0.3 for other in others) == [False, True]


def test_options_are_different_and_the_answer_stands_everywhere(suite):
    for question in suite.questions:
        assert (
            len(set(question.options))
            == len(question.options)
            == (2 if question.groups["task"] in ("contains_char", "contains_word", "orth") else 4)
        )
    for task in CuteOptions().tasks:
        places = Counter(question.gold for question in suite.questions if question.groups["task"] == task)
        assert max(places.values()) - min(places.values()) <= 3


def test_materials_are_what_they_say(suite):
    words = lexicon()
    for question in suite.questions:
        quoted = re.findall(r'"(.*?)"', question.prompt.rsplit("Question: ", 1)[1])
        word = quoted[0] if question.groups["task"] == "orth" else quoted[-1]
        word = word.replace(" ", "") if question.groups["task"].startswith("spell") else word
        material = question.groups["material"]
        if material == "sentences":
            assert 3 <= len(word.split()) <= 10
        elif material == "random_letters":
            assert re.fullmatch(r"[bcdfghjklmnpqrstvwxyz]{3,9}", word)
            assert len(set(word)) == len(word)
        else:
            assert word in (words.held_out if material == "held_out_words" else words.known)


def test_four_solved_examples_stand_before_each_question_and_none_is_the_question(suite):
    for question in suite.questions:
        queries = re.findall(r"Question: (.*)\nAnswer:", question.prompt)
        assert len(queries) == 5
        assert len(set(queries)) == 5
        assert question.prompt.endswith("Answer:")
    assert "Question" in make(CuteOptions(items=36, shots=0), "test").questions[0].prompt


def test_examples_of_yes_and_no_take_turns(suite):
    prompt = next(q.prompt for q in suite.questions if q.groups["task"] == "contains_char")
    assert re.findall(r'Answer: "(\w+)"', prompt) == ["Yes", "No", "Yes", "No"]


def test_training_items_are_other_ones(suite):
    training = make(CuteOptions(items=400), "train")

    def queries(items: Suite) -> set[str]:
        return {question.prompt.rsplit("Question: ", 1)[1] for question in items.questions}

    assert queries(training).isdisjoint(queries(suite))
    held_out = set(lexicon().held_out)
    for question in training.questions:
        assert question.groups["material"] in ("known_words", "sentences")
        if question.groups["material"] == "known_words":
            assert held_out.isdisjoint(re.findall(r'"(\w+)"', question.prompt.rsplit("Question: ", 1)[1]))


def _question(task: str) -> Question:
    return Question("test/0", {"task": task, "material": "known_words"}, "", ' "x"')


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        ("spell", ' "t h e"', "t h e"),
        ("spell", ' "t h e" because', "t h e"),
        ("spell", " t h e\n", "t h e"),
        ("spell", '"t h e"\nQuestion: Spell out "cat".', "t h e"),
        ("del_char", ' "The"', "The"),
        ("del_word", ' "The Octopus."', "the octopus."),
        ("spell", "", ""),
    ],
)
def test_written_answers_are_read_between_the_quotation_marks(task, text, answer):
    assert read_quoted(_question(task), text) == answer


def test_the_questions_of_this_version_stay_as_they_are():
    suite = make(CuteOptions(), "test")
    assert (suite.version, suite.questions_digest[:16]) == (1, "b8991a8e7017a46d")


def test_spelled_puts_spaces_between_letters():
    assert spelled(("t", "h", "e")) == "t h e"
