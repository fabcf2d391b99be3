"""``resources.<stage>.zero`` and ``deepspeed``: what can be split and offloaded together, found while validating."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.reading.resources import Resources, Zero


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"student": 1, "offload_optimizer": "cpu"},
        {"student": 3, "offload_optimizer": "nvme", "offload_parameters": "cpu", "nvme_path": "/fast"},
        {"student": 0, "teacher": 3, "offload_teacher": "cpu"},
    ],
)
def test_what_fits_together_is_taken(options):
    assert Zero(**options).model_dump(exclude_unset=True) == options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"offload_optimizer": "cpu"}, "offload_optimizer: cpu needs student: 1 or more, not 0"),
        ({"student": 2, "offload_optimizer": "nvme", "nvme_path": "/fast"}, "nvme needs student: 3, not 2"),
        ({"student": 2, "offload_parameters": "cpu"}, "offload_parameters: cpu needs student: 3, not 2"),
        ({"offload_teacher": "cpu"}, "offload_teacher: cpu needs teacher: 3, not 0"),
        ({"student": 3, "offload_optimizer": "nvme"}, "nvme needs nvme_path"),
        ({"student": 3, "nvme_path": "/fast"}, "nvme_path has no effect without"),
        ({"student": 4}, "Input should be 0, 1, 2 or 3"),
        ({"teacher": 1}, "Input should be 0 or 3"),
    ],
)
def test_what_does_not_is_refused_with_what_is_missing(options, said):
    with pytest.raises(ValidationError) as refused:
        Zero(**options)
    assert said in str(refused.value)


def test_the_file_of_a_deepspeed_configuration_is_found_from_the_recipe():
    assert Resources(deepspeed="ds.json").located(Path("/recipes")).deepspeed == "/recipes/ds.json"
    inline = {"zero_optimization": {"overlap_comm": True}}
    assert Resources(deepspeed=inline).located(Path("/recipes")).deepspeed == inline
