"""Sums: lengths, carries, groups of digits, and what counts as a right answer."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.suites.addition import addends, count_carries, grouped, make, near_misses, read_sum
from stages.evaluation.suites.options import AdditionOptions
from stages.evaluation.suites.questions import Question, Suite
from stages.stage import StageError


@pytest.mark.parametrize(
    ("digits", "left", "right"),
    [("1234", "123,4", "1,234"), ("1234567", "123,456,7", "1,234,567"), ("123", "123", "123"), ("12", "12", "12")],
)
def test_groups_of_three_from_either_end(digits, left, right):
    assert grouped(digits, "left", ",") == left
    assert grouped(digits, "right", ",") == right
    assert grouped(digits, "none", ",") == digits


@given(st.integers(0, 10**15))
def test_groups_from_the_right_are_the_usual_thousands(number):
    assert grouped(str(number), "right", ",") == f"{number:,}"


@pytest.mark.parametrize(("left", "right", "carries"), [(0, 0, 0), (12, 34, 0), (5, 5, 1), (999, 1, 3), (909, 301, 2)])
def test_carries_are_counted_by_column(left, right, carries):
    assert count_carries(left, right) == carries


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_addends_have_their_lengths_and_carry_in_shared_columns(first, second, rng):
    left, right = addends((first, second), rng)
    assert (len(str(left)), len(str(right))) == (first, second)
    assert count_carries(left, right) <= min(first, second)


def test_every_number_of_carries_is_equally_frequent():
    rng = Random(3)
    counts = Counter(count_carries(*addends((4, 4), rng)) for _ in range(5000))
    assert set(counts) == {0, 1, 2, 3, 4}
    # 5000 draws of probability 1/5: four standard deviations are 113.
    assert all(abs(count - 1000) < 113 for count in counts.values())


@pytest.fixture(scope="module")
def suite() -> Suite:
    options = AdditionOptions(
        items=1000, digits=(1, 2, 3, 4), grouping=("none", "right", "left"), answers=("forward", "reversed")
    )
    return make(options, "test")


def _sums(question: Question) -> list[tuple[int, int, str]]:
    """(left, right, written sum) of the solved examples and then of the question, read from the text."""
    text = question.prompt + question.answer
    return [
        (int(left.replace(",", "")), int(right.replace(",", "")), total)
        for left, right, total in re.findall(r"^([\d,]+)\+([\d,]+)=([\d,]+)$", text, flags=re.M)
    ]


def test_every_sum_and_every_example_is_right(suite):
    for question in suite.questions:
        sums = _sums(question)
        assert len(sums) == 5
        for left, right, total in sums:
            digits = total.replace(",", "")
            assert int(digits[::-1] if question.groups["order"] == "reversed" else digits) == left + right
            assert "+".join(str(len(str(number))) for number in (left, right)) == question.groups["digits"]
        left, right, total = sums[-1]
        carries = count_carries(left, right)
        assert question.groups["carries"] == ("3 or more" if carries > 2 else str(carries))
        assert total == question.answer
        assert (left, right) not in [(a, b) for a, b, _ in sums[:-1]]


def test_numbers_are_grouped_as_the_stratum_says(suite):
    separated = {grouping: set() for grouping in ("none", "right", "left")}
    for question in suite.questions:
        numbers = re.findall(r"[\d,]+", question.prompt.rsplit("\n", 1)[-1])
        for number in numbers:
            separated[question.groups["grouping"]].add(tuple(map(len, number.split(","))))
    assert (4,) in separated["none"]
    assert (1, 3) in separated["right"]
    assert (3, 1) in separated["left"]
    assert all(len(lengths) == 1 for lengths in separated["none"])


def test_no_tested_sum_is_in_training_in_either_order(suite):
    training = make(AdditionOptions(items=2000, digits=(1, 2, 3, 4)), "train")
    trained = {frozenset(_sums(question)[-1][:2]) for question in training.questions}
    shown = {frozenset(pair[:2]) for question in suite.questions for pair in _sums(question)[:-1]}
    tested = {frozenset(_sums(question)[-1][:2]) for question in suite.questions}
    assert tested.isdisjoint(trained | shown)
    assert {question.groups["digits"] for question in training.questions}.isdisjoint({"5+5", "6+6", "1+1"})


def test_zero_padding_gives_every_number_the_length_of_the_longest_sum():
    suite = make(AdditionOptions(items=40, digits=(2, 3), zero_pad=True, shots=1), "test")
    for question in suite.questions:
        width = max(map(int, question.groups["digits"].split("+"))) + 1
        text = question.prompt + question.answer
        (numbers,) = {tuple(map(len, re.findall(r"\d+", line))) for line in text.splitlines()}
        assert numbers == (width, width, width)


@given(st.integers(10, 10**6), st.integers(10, 10**6), st.integers())
def test_near_misses_are_three_wrong_sums_of_the_same_length(left, right, seed):
    misses = near_misses(left, right, Random(seed))
    assert len({left + right, *misses}) == 4
    assert {len(str(miss)) for miss in misses} == {len(str(left + right))}


def _right(text: str, answer: str, separator: str = ",") -> bool:
    question = Question("test/0", {}, "123+198=", answer)
    return read_sum(separator, question, text) == read_sum(separator, question, answer)


def test_only_what_is_written_after_the_prompt_counts():
    # Defect 10 of the published code: the reversed sum of 123 + 198 is 123, which stands in the prompt.
    assert _right("123\n", "123")
    assert not _right("321\n", "123")
    assert not _right("", "123")
    assert not _right("456 is the sum, not 123", "123")
    assert not _right("1234", "123")
    assert not _right("5\n123", "123")
    assert _right(" 1,234", "1,234")
    assert _right("1234", "1,234")
    assert _right("1 234", "1 234", " ")


def test_the_published_format_has_answers_in_its_prompts():
    # Three digits and up to three: 730 of the 900,000 problems have the reversed answer in the prompt.
    found = sum(str(a + b)[::-1] in f"${a}+{b}=" for a in range(100, 1000) for b in range(1000))
    assert found == 730


def test_too_few_items_are_refused_with_the_number_wanted():
    with pytest.raises(StageError, match=r"suites.addition.items: 5 .* give 17 or more"):
        make(AdditionOptions(items=5), "test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"digits": (2, 16)}, "1 to 15 digits"),
        ({"digits": (1,)}, "add a length"),
        ({"unseen_digits": (1,)}, "2 or more digits"),
        ({"digits": (2, 5)}, "unseen_digits: 5 is also in 'digits'"),
        ({"separator": "+"}, "a part of the question"),
        ({"separator": "7"}, "a part of the question"),
        ({"grouping": ("left", "left")}, "left is there more than once"),
    ],
)
def test_options_that_make_no_questions_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AdditionOptions(**options)


def test_the_questions_of_this_version_stay_as_they_are():
    suite = make(AdditionOptions(), "test")
    assert (suite.version, suite.questions_digest[:16]) == (1, "fcfb4df73aba6c62")
