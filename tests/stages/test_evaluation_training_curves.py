"""Curves of a training as the report has them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from stages.evaluation.training_curves import MOST_POINTS, read_training


def _write(directory: Path, points: list[dict[str, float]]) -> Path:
    directory.mkdir()
    (directory / "training.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return directory


def test_training_curves_are_the_losses_and_what_says_how_they_came_about(tmp_path):
    points = [
        {"step": 5, "loss": 3.0, "alm": 2.0, "alm.weight": 1.0, "alm.units": 9, "learning_rate": 0.1, "mfu": 0.3},
        {"step": 10, "eval.bits_per_byte": 1.5},
        {"step": 10, "loss": float("nan"), "alm": 1.0, "alm.weight": 1.0, "learning_rate": 0.05},
    ]
    trained, initial = _write(tmp_path / "trained", points), tmp_path / "initial"
    initial.mkdir()
    assert read_training({"init": initial, "distill": trained}) == {
        "distill": {
            "steps": 10,
            "points": 3,
            "not_finite": 1,
            "measures": {
                "loss": [[5, 3.0]],
                "eval.bits_per_byte": [[10, 1.5]],
                "learning_rate": [[5, 0.1], [10, 0.05]],
                "alm": [[5, 2.0], [10, 1.0]],
            },
        }
    }


@pytest.mark.parametrize("length", [1, MOST_POINTS, MOST_POINTS + 1, 5000])
def test_long_curves_are_thinned_evenly_and_keep_their_ends(tmp_path, length):
    model = _write(tmp_path / "model", [{"step": step, "loss": step / 2} for step in range(1, length + 1)])
    training = read_training({"model": model})["model"]
    curve = training["measures"]["loss"]
    assert training["points"] == training["steps"] == length
    assert len(curve) == min(length, MOST_POINTS)
    assert curve[0] == [1, 0.5]
    assert curve[-1] == [length, length / 2]
    gaps = {after[0] - before[0] for before, after in pairwise(curve)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert all(value == step / 2 for step, value in curve)
