from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from pipeline.views.text_curves import HEIGHT, MOST_LINES, WIDTH, overlaid


def test_two_lines_that_cross() -> None:
    picture = overlaid({"up": [(0, 1), (59, 12)], "down": [(0, 12), (59, 1)]})
    rows = [line.partition("│")[2].ljust(WIDTH) for line in picture[:HEIGHT]]
    assert [row[0] for row in rows] == ["b", *" " * 10, "a"]
    assert [row[-1] for row in rows] == ["a", *" " * 10, "b"]
    # (1 + 11 x / 59) and (12 - 11 x / 59) meet between columns 29 and 30, in rows that are told apart by rounding
    assert {row[24] for row in rows} == {" ", "a", "b"}
    assert picture[0].startswith("12 │")
    assert picture[HEIGHT - 1].startswith(" 1 │")
    assert picture[HEIGHT + 1].split() == ["0", "59"]
    assert picture[HEIGHT + 2 :] == ["  a up", "  b down"]


def test_lines_on_each_other_are_marked_as_several() -> None:
    picture = overlaid({"one": [(1, 5.0), (2, 5.0)], "two": [(1, 5.0), (2, 5.0)]})
    assert sum(line.count("#") for line in picture) == WIDTH
    assert picture[0].startswith("5.5 │")
    assert picture[HEIGHT - 1].startswith("4.5 │")


def test_what_cannot_be_drawn_is_named() -> None:
    assert overlaid({}) == overlaid({"x": [(1, math.nan)]}) == ["nothing to draw"]
    assert overlaid({"a": [(1, 1.0)], "gone": [(1, math.inf)]})[-1] == "  gone: no finite value"
    assert overlaid({str(number): [(1, 1.0)] for number in range(MOST_LINES + 3)})[-1] == "  and 3 more"


@given(
    st.dictionaries(
        st.sampled_from("pqr"),
        st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e6, 1e6)), min_size=1).map(sorted),
        min_size=1,
    )
)
def test_any_lines_fit_the_frame_and_each_begins_and_ends_where_it_does(lines: dict) -> None:
    picture = overlaid(lines)
    assert all(len(line.partition("│")[2]) <= WIDTH for line in picture[:HEIGHT])
    drawn = "".join(line.partition("│")[2] for line in picture[:HEIGHT])
    assert set(drawn) <= set("abc# ")
    assert drawn.strip(), "something is drawn"
    assert len(picture) == HEIGHT + 2 + len(lines)
