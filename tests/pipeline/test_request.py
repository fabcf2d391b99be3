from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.request import Request, selected

UPSTREAM = {
    "sources/text": [],
    "sources/model": [],
    "align": ["sources/model"],
    "init": ["align", "sources/model"],
    "distil": ["init", "sources/text"],
    "control": ["init", "sources/text"],
    "evaluate": ["distil", "control"],
}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(), set(UPSTREAM)),
        (Request(start=("distil",)), {"distil", "evaluate", "sources/text"}),
        (Request(until=("init",)), {"init", "align", "sources/model"}),
        (Request(start=("init",), until=("distil",)), {"init", "distil", "sources/model", "sources/text"}),
        (Request(only=("control",)), {"control", "sources/text"}),
        (Request(start=("distil", "control")), {"distil", "control", "evaluate", "sources/text"}),
        (Request(until=("align", "sources/text")), {"align", "sources/model", "sources/text"}),
        (Request(only=("evaluate",), start=("align",)), {"evaluate"}),
    ],
)
def test_selections(request_: Request, expected: set[str]) -> None:
    assert selected(request_, UPSTREAM) == expected


def test_every_wrong_name_is_reported_with_the_nearest_right_one() -> None:
    with pytest.raises(RecipeError) as error:
        selected(Request(start=("distill",), only=("xyz",), restart=("ini",)), UPSTREAM)
    assert error.value.problems == [
        "--from distill: no stage is called 'distill' (did you mean 'distil'?)",
        "--only xyz: no stage is called 'xyz' (known: sources/text, sources/model, align, init, distil, control, "
        "evaluate)",
        "--restart ini: no stage is called 'ini' (did you mean 'init'?)",
    ]


def test_an_empty_selection_and_a_force_outside_it_are_refused() -> None:
    with pytest.raises(RecipeError, match="--from distil --until control: no stage is in all of these"):
        selected(Request(start=("distil",), until=("control",)), UPSTREAM)
    with pytest.raises(RecipeError, match="align is to be forced or restarted, but it is not among the selected"):
        selected(Request(start=("distil",), force=("align",)), UPSTREAM)


@given(st.data())
def test_what_is_selected_agrees_with_paths_through_the_graph(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 7))
    names = [f"s{index}" for index in range(size)]
    upstream = {
        name: [other for other in names[:index] if data.draw(st.booleans())] for index, name in enumerate(names)
    }
    # Reachability by brute force: every sequence of stages, ascending, whose neighbours are joined.
    paths = {
        (path[0], path[-1])
        for length in range(1, size + 1)
        for path in itertools.combinations(names, length)
        if all(left in upstream[right] for left, right in itertools.pairwise(path))
    }
    start, end = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
    expected = {name for name in names if (start, name) in paths and (name, end) in paths}
    request = Request(start=(start,), until=(end,))
    if expected:
        assert selected(request, upstream) == expected
    else:
        with pytest.raises(RecipeError):
            selected(request, upstream)
