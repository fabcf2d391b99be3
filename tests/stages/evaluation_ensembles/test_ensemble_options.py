"""What a recipe may say of ensembles, and what it is told where it may not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stages.evaluate import Evaluate
from stages.evaluation.ensembles.options import EnsembleOptions

PROXY = {"base": "large", "expert": "tuned", "anti": "small"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either members, or proxy"),
        ({"members": ["a", "b"], "proxy": PROXY}, "give either members, or proxy"),
        ({"members": ["a"]}, "two members or more, not 1"),
        ({"members": []}, "two members or more, not 0"),
        ({"members": ["a", "a"]}, "named twice; give it a greater weight"),
        ({"members": ["a", "b"], "weights": [1]}, "1 weights for 2 members"),
        ({"members": ["a", "b"], "weights": [1, 2, 3]}, "3 weights for 2 members"),
        ({"members": ["a", "b"], "weights": [1, 0]}, "weights must be positive"),
        ({"members": ["a", "b"], "weights": [1, -1]}, "weights must be positive"),
        ({"members": ["a", "b"], "weights": [1, float("nan")]}, "finite"),
        ({"members": ["a", "b"], "mean": "harmonic"}, "'arithmetic', 'geometric', 'logit' or 'mixture'"),
        ({"members": ["a", "b"], "level": "word"}, "'token' or 'byte'"),
        ({"proxy": {**PROXY, "alpha": -0.5}}, "greater than or equal to 0"),
        ({"proxy": {**PROXY, "anti": "tuned"}}, "which would change nothing"),
        ({"proxy": PROXY, "mean": "geometric"}, "mean would have no effect with proxy"),
        ({"proxy": PROXY, "weights": [1, 1, 1]}, "weights would have no effect with proxy"),
    ],
)
def test_what_makes_no_ensemble_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EnsembleOptions.model_validate(options)


def problems(ensembles: dict[str, Any]) -> dict[str, str]:
    config = Evaluate.Config.model_validate({"ensembles": ensembles})
    found = config.upstream_problems({"models": {"distill": config, "control": config}})
    return {".".join(map(str, place)): problem for place, problem in found}


def test_members_are_rows_of_the_evaluation() -> None:
    assert problems({"both": {"members": ["teacher", "distill", "control"]}}) == {}
    found = problems({"both": {"members": ["distil", "control"]}, "moved": {"proxy": {**PROXY, "base": "distill"}}})
    assert list(found) == ["ensembles.both.members.0", "ensembles.moved.proxy.expert", "ensembles.moved.proxy.anti"]
    assert "did you mean 'distill'?" in found["ensembles.both.members.0"]
    assert "known: teacher, distill, control" in found["ensembles.moved.proxy.expert"]


def test_an_ensemble_is_a_row_of_its_own() -> None:
    assert (
        "give the ensemble another name"
        in problems({"control": {"members": ["distill", "control"]}})["ensembles.control"]
    )
    # No ensemble of ensembles.
    found = problems({"a": {"members": ["distill", "control"]}, "b": {"members": ["a", "control"]}})
    assert list(found) == ["ensembles.b.members.0"]
    with pytest.raises(ValidationError, match="pattern"):
        Evaluate.Config.model_validate({"ensembles": {"../both": {"members": ["distill", "control"]}}})


def test_options_reach_the_stage_as_they_were_given() -> None:
    for options in ({"members": ["a", "b"], "weights": [1, 2]}, {"proxy": PROXY, "level": "byte"}):
        given = EnsembleOptions.model_validate(options)
        assert EnsembleOptions.model_validate(given.model_dump(mode="json")) == given


def test_no_ensembles_change_no_recipe() -> None:
    assert Evaluate.Config().ensembles is None
    with pytest.raises(ValidationError, match="at least 1"):
        Evaluate.Config.model_validate({"ensembles": {}})
