"""Norm calibration: new rows as long as the copied rows of their script, all others bit by bit as they were."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from init_world import make_transplant
from torch import Tensor
from torch.nn import functional as F

from alignment.byte_view import ByteView
from stages.initialisation.refining import build_refiner
from stages.initialisation.scripts import SCRIPTS, token_scripts
from stages.initialisation.task import Transplant
from stages.initializers.refiners import NormCalibrationOptions
from stages.stage import StageError

LATIN = [letters.encode() for letters in ("the", "of", " and", "to", "in", "new", "word", "12")]
CYRILLIC = [letters.encode() for letters in ("мир", " дом", "да", "новый")]
SHARED = [*LATIN[:5], *CYRILLIC[:3]]


@pytest.fixture
def scripts() -> tuple[Transplant, Tensor, Tensor]:
    """Copied rows of length 1 to 5 (Latin) and 10 to 12 (Cyrillic), a special token of length 1,000, new rows of 7."""
    source = [*(bytes([byte]) for byte in range(256)), *SHARED, None]
    target = [*LATIN, *CYRILLIC, None]
    transplant = make_transplant(source, target)
    lengths = {token: float(number + 1) for number, token in enumerate(LATIN[:5])}
    lengths |= {token: float(number + 10) for number, token in enumerate(CYRILLIC[:3])}
    draw = torch.Generator().manual_seed(1)
    rows = F.normalize(torch.randn(len(target), 6, generator=draw), dim=1)
    rows *= torch.tensor([1000.0 if token is None else lengths.get(token, 7.0) for token in target])[:, None]
    new = torch.tensor([token is not None and token not in SHARED for token in target])
    return transplant, rows, new


@pytest.mark.parametrize(
    ("options", "latin", "cyrillic", "numeral"),
    [
        ({"target": "script", "fewest": 3}, 3.0, 11.0, 4.5),
        ({"target": "script", "fewest": 4}, 3.0, 4.5, 4.5),
        ({"target": "global"}, 4.5, 4.5, 4.5),
        ({}, 4.5, 4.5, 4.5),  # fewer than 20 examples of either script
    ],
)
def test_new_rows_get_the_median_length_of_their_script(scripts, options, latin, cyrillic, numeral):
    transplant, rows, new = scripts
    target = [*LATIN, *CYRILLIC, None]
    before = {"input": rows, "output": rows.flip(0)}
    after = {role: matrix.clone() for role, matrix in before.items()}
    refiner = build_refiner(NormCalibrationOptions(method="norm_calibration", **options), transplant)
    numbers = refiner.refine(after, new)
    assert torch.equal(after["input"][~new], rows[~new])
    assert torch.equal(after["output"], before["output"])
    expected = {b"new": latin, b"word": latin, "новый".encode(): cyrillic, b"12": numeral}
    for token, length in expected.items():
        assert float(after["input"][target.index(token)].norm()) == pytest.approx(length, rel=1e-6), token
    torch.testing.assert_close(F.normalize(after["input"], dim=1), F.normalize(rows, dim=1))
    assert numbers["input.median_norm_before"] == pytest.approx(7.0)
    assert numbers["input.median_norm"] == pytest.approx(np.median([latin, latin, cyrillic, numeral]))


def test_a_tied_model_is_warned_and_has_no_output_to_calibrate(scripts):
    transplant, rows, new = scripts
    lines: list[str] = []
    transplant = dataclasses.replace(transplant, progress=lines.append)
    build_refiner(NormCalibrationOptions(method="norm_calibration"), transplant).refine({"input": rows}, new)
    assert len(lines) == 1
    assert lines[0].startswith("warning: norm_calibration changes the output rows of a tied model")
    both = NormCalibrationOptions(method="norm_calibration", roles=("input", "output"))
    with pytest.raises(StageError, match="roles names output, but the model has one matrix"):
        build_refiner(both, transplant).refine({"input": rows}, new)


def test_calibration_needs_rows_to_measure(scripts):
    options = NormCalibrationOptions(method="norm_calibration")
    with pytest.raises(StageError, match="there are none; remove it"):
        build_refiner(options, make_transplant([b"a", b"b", None], [b"c", b"d", None]))
    transplant, rows, new = scripts
    with pytest.raises(StageError, match="no copied row of the input matrix with a norm above 0"):
        build_refiner(options, transplant).refine({"input": rows, "output": rows}, torch.ones_like(new))


def test_the_script_of_a_token_is_that_of_most_of_its_letters():
    tokens = [b"the", " дом".encode(), "a日本".encode(), b"12", b"\xd0", b"...", "naïve".encode(), None, b" "]
    found = token_scripts(ByteView.from_token_bytes(tokens))
    names = [None if script < 0 else SCRIPTS[script] for script in found]
    assert names == ["latin", "cyrillic", "han", None, None, None, "latin", None, None]
