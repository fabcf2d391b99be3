"""Numbers of a report as people read them."""

from __future__ import annotations

import math

import pytest

from stages.evaluation.numbers import best_rows, interval, shown


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (0.85149, 3, False, "0.851"),
        (12.5, 0, False, "12"),
        (-0.0004, 3, False, "0.000"),
        (-0.0004, 3, True, "+0.000"),
        (0.0004, 3, True, "+0.000"),
        (-1.5, 1, True, "-1.5"),
        (None, 3, False, "-"),
        (math.nan, 3, False, "-"),
        (math.inf, 1, False, "-"),
    ],
)
def test_how_a_number_is_shown(value, digits, sign, text):
    assert shown(value, digits, sign=sign) == text


def test_an_interval_has_both_ends_or_is_not_shown():
    assert interval({"low": -0.02, "high": 0.5}, 2, sign=True) == "[-0.02, +0.50]"
    assert interval({"low": 0.1, "high": None}, 2) == ""


@pytest.mark.parametrize(
    ("values", "better", "best"),
    [
        ({"a": 1.0, "b": 2.0}, "lower", {"a"}),
        ({"a": 1.0, "b": 2.0}, "higher", {"b"}),
        ({"a": 1.0, "b": 2.0}, None, set()),
        ({"a": 1.0}, "lower", set()),
        ({"a": 1.0, "b": None, "c": math.nan}, "lower", set()),
        ({"a": 1.0, "b": 1.0}, "lower", set()),
        # 0.90401 and 0.90449 are both shown as 0.904
        ({"a": 0.90401, "b": 0.90449, "c": 0.92}, "lower", {"a", "b"}),
    ],
)
def test_which_rows_are_best(values, better, best):
    assert best_rows(values, better, 3) == best
