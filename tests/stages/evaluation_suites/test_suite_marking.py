"""Right, wrong, tied or not to be asked: marks, shares and their intervals."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from stages.evaluation.suites.marking import baselines, choose, read
from stages.evaluation.suites.questions import Question, Suite, placed, spread
from stages.evaluation.suites.tables import normalised, wilson

QUESTION = Question("test/0", {"task": "spell"}, "Answer:", " two", (" a", " two", " three", " seven"))


def _suite(*questions: Question) -> Suite:
    return Suite(
        name="toy",
        title="Toy",
        about="",
        version=1,
        settings={},
        questions=questions,
        groups={"task": ("spell",)},
        forms=("choice", "generation"),
        ending="\n",
    )


def _choose(nats: list[float], *, per_byte: bool = False) -> tuple[float, str, bool]:
    mark = choose(QUESTION, nats, [None] * 4, per_byte=per_byte)
    return mark.credit, mark.answer, mark.tied


def test_the_option_of_fewest_nats_is_chosen():
    assert _choose([5.0, 4.0, 6.0, 9.0]) == (1.0, "two", False)
    assert _choose([3.0, 4.0, 6.0, 9.0]) == (0.0, "a", False)


def test_per_byte_the_leading_space_is_a_byte_too():
    # 2, 4, 6 and 6 bytes: 1.5, 1.0, 1.25 and 2 nats a byte.
    assert _choose([3.0, 4.0, 7.5, 12.0], per_byte=True) == (1.0, "two", False)
    assert _choose([3.0, 4.0, 5.4, 12.0], per_byte=True) == (0.0, "three", False)


def test_ties_share_the_credit_and_never_go_to_the_first():
    assert _choose([4.0, 4.0, 6.0, 9.0]) == (0.5, "a = two", True)
    assert _choose([4.0, 4.0, 4.0, 4.0]) == (0.25, "a = two = three = seven", True)
    assert _choose([4.0, 5.0, 4.0, 9.0]) == (0.0, "a = three", True)
    assert _choose([4.0 * (1 + 1e-7), 4.0, 6.0, 9.0])[2]
    assert not _choose([4.0 * (1 + 1e-5), 4.0, 6.0, 9.0])[2]


def test_a_question_of_which_one_option_has_no_number_counts_as_wrong():
    mark = choose(QUESTION, [None, 1.0, 2.0, 3.0], ["crosses_boundary", None, None, None], per_byte=False)
    assert (mark.credit, mark.problem) == (0.0, "crosses_boundary: 'a'")


@pytest.mark.parametrize(
    ("text", "credit"), [(" two\nmore", 1), ("two", 1), ("two three", 0), ("", 0), ("\n two", 1), (" Two", 0)]
)
def test_written_answers_count_up_to_the_end_of_the_line(text, credit):
    assert read(_suite(QUESTION), QUESTION, text).credit == credit


def test_an_answer_that_could_not_be_written_is_no_empty_answer():
    mark = read(_suite(QUESTION), QUESTION, None)
    assert mark.credit == 0
    assert mark.problem.startswith("no_answer")


@pytest.mark.parametrize(("accuracy", "score"), [(0.25, 0.0), (0.50, 0.333), (0.85, 0.80), (0.97, 0.96), (1.0, 1.0)])
def test_the_published_scale_of_langgame(accuracy, score):
    assert normalised(accuracy, 0.25) == pytest.approx(score, abs=5e-4)


@given(st.integers(1, 400).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_is_scipys(pair):
    successes, count = pair
    measure = wilson(successes, count)
    interval = binomtest(successes, count).proportion_ci(method="wilson")
    assert measure.value == successes / count
    assert (measure.low, measure.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_baselines_choose_without_reading():
    other = Question("test/1", {"task": "spell"}, "Answer:", " seven", (" seven", " a", " two", " three"))
    found = baselines(_suite(QUESTION, other))
    # " seven" and " three" are both the longest: half a credit for the second question.
    assert found == {"chance": 0.25, "first": 0.5, "shortest": 0.0, "longest": 0.25}
    assert math.isclose(_suite(QUESTION, other).chance, 0.25)


@given(st.integers(1, 12), st.integers(2, 5), st.integers(1, 60))
def test_answers_stand_at_every_place_equally_often(cells, options, rounds):
    turns = list(spread(range(cells), cells * rounds, "toy"))
    assert [turn.number for turn in turns] == list(range(cells * rounds))
    for kind in (None, *range(cells)):
        places = [
            placed("gold", [f"other {n}" for n in range(options - 1)], turn.place).index("gold")
            for turn in turns
            if kind is None or turn.cell == kind
        ]
        counts = [places.count(place) for place in range(options)]
        assert max(counts) - min(counts) <= (1 if kind is not None else cells)


def test_placed_rotates():
    assert placed("p", ["s", "v", "h"], 0) == ("p", "s", "v", "h")
    assert placed("p", ["s", "v", "h"], 1) == ("h", "p", "s", "v")
    assert placed("p", ["s", "v", "h"], 7) == ("s", "v", "h", "p")


def test_digests_change_with_what_they_are_of():
    suite = _suite(QUESTION)
    renamed = _suite(Question("test/0", {"task": "spell"}, "Answer:", " two", (" two", " a", " three", " seven")))
    assert suite.questions_digest != renamed.questions_digest
    assert suite.settings_digest == renamed.settings_digest
    assert suite.questions_digest == _suite(QUESTION).questions_digest
