"""What ``distill`` says of losses that cannot be what the recipe's author meant."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from stages.distill import DistillConfig
from stages.objectives import LossEntry


def _refused(options: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DistillConfig(**yaml.safe_load(f"{{steps: 1, {options}}}"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("losses: [alm, bpm], teacher_signal: scores", r"losses\[1\]\.bpm needs .* use teacher_signal: top_k, or one"),
        ("losses: [{xtoken: {variant: h_kl}}], teacher_signal: top_k", r"losses\[0\]\.xtoken with these options needs"),
        ("losses: [alm], teacher_top_k: 8", "teacher_top_k has no effect without teacher_signal: top_k"),
        ("losses: [alm], betas: [0.9, 1.0]", "less than 1"),
        ("losses: [alm], betas: [-0.1, 0.9]", "greater than or equal to 0"),
    ],
    ids=["signal", "signal-of-an-option", "top-k-of-a-full-teacher", "beta-1", "beta-negative"],
)
def test_options_without_effect_or_sense_are_refused_with_their_place(options: str, said: str) -> None:
    _refused(options, said)


def test_an_objective_is_not_named_as_the_way_out_of_its_own_options() -> None:
    with pytest.raises(ValidationError) as refused:
        DistillConfig(steps=1, losses=[{"xtoken": {"variant": "h_kl"}}], teacher_signal="top_k")
    _, offered = str(refused.value).split("or one of")
    assert "cdm" in offered
    assert "xtoken" not in offered.splitlines()[0]


def test_options_that_are_not_indented_below_their_loss_are_refused_with_the_right_way_to_write_them() -> None:
    recipe = "- alm:\n  weight: 5\n"
    (entry,) = yaml.safe_load(recipe)
    with pytest.raises(ValidationError, match=r"indent .* further than alm, or write - alm: \{weight: 5\}"):
        LossEntry.model_validate(entry)
    assert LossEntry.model_validate({"alm": {"weight": 5}}).options.weight == 5


def test_a_loss_without_options_is_the_loss_with_its_defaults_however_it_is_spelled() -> None:
    entries = [LossEntry.model_validate(each) for each in ("alm", {"alm": None}, {"alm": {}})]
    assert entries[0] == entries[1] == entries[2]
    # What a resolved recipe holds names every loss.
    assert LossEntry.model_validate(entries[0].model_dump()) == entries[0]
