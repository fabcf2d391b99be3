from __future__ import annotations

import pytest
from pydantic import ValidationError

from stages.objectives import AlmOptions, HiddenStateOptions


def test_a_recipe_may_switch_merging_off() -> None:
    assert AlmOptions(gamma=None).gamma is None
    assert AlmOptions(max_group_chunks=8).max_group_chunks == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": None, "max_group_chunks": 8}, "remove it, or set gamma"),
        ({"max_group_chunks": 0}, "max_group_chunks"),
        ({"gamma": 1.5}, "gamma"),
        ({"divergence": "KL"}, "divergence"),
    ],
)
def test_alm_options_that_make_no_sense_are_refused(options: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AlmOptions(**options)


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        ("last", ((-1, -1),)),
        ([-1], ((-1, -1),)),
        ([[-1, -1]], ((-1, -1),)),
        ([0, [4, 2]], ((0, 0), (4, 2))),
        ("all", ((0, 0), (1, 1), (2, 2))),
    ],
)
def test_layers_may_be_named_in_several_ways(layers: object, pairs: tuple) -> None:
    assert HiddenStateOptions(layers=layers).layer_pairs(3) == pairs


def test_one_choice_of_layers_has_one_spelling_so_that_it_has_one_cache_key() -> None:
    assert HiddenStateOptions(layers="last") == HiddenStateOptions() == HiddenStateOptions(layers=[[-1, -1]])


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "name at least one layer, or use last or all"),
        ("first", "last, all, a list of layers"),
        (3, "last, all, a list of layers"),
        ([[1, 2, 3]], r"pairs as \[\[teacher, student\]"),
        ([True], "a list of layers"),
        ([1, [1, 1]], "named twice"),
    ],
)
def test_layers_that_make_no_sense_are_refused(layers: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        HiddenStateOptions(layers=layers)


def test_what_balancing_and_a_second_projector_need_to_know() -> None:
    assert HiddenStateOptions().reaches_head_input
    assert HiddenStateOptions(layers=[[3, -1]]).reaches_head_input
    assert not HiddenStateOptions(layers=[1, -1]).reaches_head_input
    assert not HiddenStateOptions(layers="all").reaches_head_input
    assert not HiddenStateOptions().trains_projector
    assert HiddenStateOptions(projection=True).trains_projector
